//! The URL of a Postgres database: what libpq takes of it, as far as a planner can use it.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use percent_encoding::percent_decode_str;
use sqlx::postgres::PgConnectOptions;

/// Parameters that are taken after `?`. Another one may be a slip that hides a password.
const PARAMETERS: [&str; 14] = [
    "application_name",
    "connect_timeout",
    "dbname",
    "host",
    "hostaddr",
    "options",
    "password",
    "port",
    "sslcert",
    "sslkey",
    "sslmode",
    "sslrootcert",
    "target_session_attrs",
    "user",
];
/// Parameters of libpq that are not taken.
const REFUSED: [&str; 27] = [
    "channel_binding",
    "client_encoding",
    "fallback_application_name",
    "gssdelegation",
    "gssencmode",
    "gsslib",
    "keepalives",
    "keepalives_count",
    "keepalives_idle",
    "keepalives_interval",
    "krbsrvname",
    "load_balance_hosts",
    "passfile",
    "replication",
    "require_auth",
    "requirepeer",
    "service",
    "sslcertmode",
    "sslcompression",
    "sslcrl",
    "sslcrldir",
    "sslnegotiation",
    "sslpassword",
    "sslsni",
    "ssl_max_protocol_version",
    "ssl_min_protocol_version",
    "tcp_user_timeout",
];
/// Parameters of which each server may have its own, in lists.
const OF_SERVERS: [&str; 3] = ["host", "hostaddr", "port"];
/// The most servers.
const MAX_SERVERS: usize = 16;
/// Names with their values.
type Pairs = Vec<(String, String)>;

/// How this program calls itself.
const APPLICATION: &str = "rfork-planner";

/// The URL of a Postgres database. `Display` and `Debug` show where it is, and neither its password nor anything
/// else that stands after the database's name.
#[derive(Clone)]
pub struct PostgresUrl {
    text: String,
    servers: Vec<Server>,
    target: Target,
    connect_timeout: Option<Duration>,
    settings: Pairs,
    tls_files: Vec<(String, PathBuf)>,
}

/// One of the servers of a URL, and how to connect to it; it holds the password.
#[derive(Clone)]
pub(crate) struct Server {
    own: PgConnectOptions,
    shared: PgConnectOptions,
}

impl Server {
    /// How to connect. Sessions that are shared are not to be given settings when they begin: poolers refuse that, or
    /// pass over it.
    pub(crate) fn options(&self, shared: bool) -> &PgConnectOptions {
        if shared { &self.shared } else { &self.own }
    }

    /// Where it is.
    fn place(&self) -> String {
        match self.own.get_socket() {
            Some(socket) => socket.display().to_string(),
            None => format!("{}:{}", self.own.get_host(), self.own.get_port()),
        }
    }
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.place())
    }
}

/// Which of several servers is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Target {
    /// The first that answers.
    #[default]
    Any,
    /// The first that takes writes.
    ReadWrite,
    /// The first that does not follow another one.
    Primary,
}

impl PostgresUrl {
    /// Reads a URL with its scheme.
    ///
    /// # Errors
    /// What is wrong with it, as the end of a sentence that says what it got. It never holds a password.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let (scheme, rest) = text.split_once("://").ok_or("a postgres URL without '//'")?;
        check_spelling(rest)?;
        // The driver would tell it when a session begins, which poolers refuse, and beside what the URL says.
        if std::env::var_os("PGOPTIONS").is_some_and(|options| !options.is_empty()) {
            return Err("PGOPTIONS in the environment: give it as options=... in the URL, or unset it".into());
        }
        let (head, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = head.split_at(head.find('/').unwrap_or(head.len()));
        let (user, hosts) = authority.rsplit_once('@').unwrap_or(("", authority));
        let parameters = Parameters::read(query)?;
        let servers = parameters.servers(hosts)?.into_iter().map(|(host, mine)| {
            let of = |options: Option<&str>| {
                let pairs = mine.iter().map(|(name, value)| (name.as_str(), value.as_str()));
                let pairs = pairs.chain(options.map(|options| ("options", options)));
                let mut pairs: Vec<String> = pairs.map(|(name, value)| format!("{name}={value}")).collect();
                let mut user = user.to_owned();
                if host.is_empty() && !user.is_empty() {
                    // Which is no URL for most of its readers.
                    let encoded = std::mem::take(&mut user).replace('+', "%2B");
                    let (name, password) = encoded.split_once(':').unzip();
                    pairs.push(format!("user={}", name.unwrap_or(&encoded)));
                    pairs.extend(password.map(|password| format!("password={password}")));
                } else if !user.is_empty() {
                    user.push('@');
                }
                let text = format!("{scheme}://{user}{host}{path}?{}", pairs.join("&"));
                // What was wrong with it might quote it.
                let options = PgConnectOptions::from_str(&text)
                    .map_err(|_| "a postgres URL that cannot be read".to_owned())?
                    // We ask for no numbers of that kind, and poolers know nothing of this setting.
                    .extra_float_digits(None);
                Ok::<_, String>(match options.get_application_name() {
                    Some(_) => options,
                    None => options.application_name(APPLICATION),
                })
            };
            let own = of(parameters.options.as_deref())?;
            let shared = of(parameters.options.as_deref().filter(|_| parameters.settings.is_none()))?;
            Ok(Server { own, shared })
        });
        Ok(Self {
            text: text.to_owned(),
            servers: servers.collect::<Result<_, String>>()?,
            target: parameters.target,
            connect_timeout: parameters.connect_timeout,
            settings: parameters.settings.unwrap_or_default(),
            tls_files: parameters.tls_files,
        })
    }

    /// The servers, in the order in which they are tried.
    pub(crate) fn servers(&self) -> &[Server] {
        &self.servers
    }

    /// Which of them is wanted.
    pub(crate) fn target(&self) -> Target {
        self.target
    }

    /// How long one attempt to connect may take, if that is said.
    pub(crate) fn connect_timeout(&self) -> Option<Duration> {
        self.connect_timeout
    }

    /// The settings in `options`, for sessions that cannot begin with them.
    pub(crate) fn settings(&self) -> &[(String, String)] {
        &self.settings
    }

    /// The files that TLS takes, each with its parameter.
    pub(crate) fn tls_files(&self) -> impl Iterator<Item = (&str, &PathBuf)> {
        self.tls_files.iter().map(|(name, path)| (name.as_str(), path))
    }

    /// How to connect to the first server; it holds the password.
    #[cfg(test)]
    pub(crate) fn options(&self) -> &PgConnectOptions {
        self.servers[0].options(false)
    }
}

impl PartialEq for PostgresUrl {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for PostgresUrl {}

impl fmt::Display for PostgresUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let places: Vec<String> = self.servers.iter().map(Server::place).collect();
        let Some(Server { own, .. }) = self.servers.first() else { return Ok(()) };
        let user = own.get_username();
        write!(f, "postgres://{user}@{}/{}", places.join(","), own.get_database().unwrap_or(user))
    }
}

impl fmt::Debug for PostgresUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What stands after `?`.
#[derive(Default)]
struct Parameters {
    /// Those that the driver reads, as they are spelled, but for `options`.
    pairs: Pairs,
    target: Target,
    connect_timeout: Option<Duration>,
    /// As it is spelled.
    options: Option<String>,
    /// What `options` sets, if that is all that it does.
    settings: Option<Pairs>,
    tls_files: Vec<(String, PathBuf)>,
}

impl Parameters {
    fn read(query: &str) -> Result<Self, String> {
        let mut read = Self::default();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, spelled) = pair.split_once('=').unwrap_or((pair, ""));
            if REFUSED.contains(&name) {
                return Err(format!("the parameter '{name}', which a planner does not take"));
            }
            if !PARAMETERS.contains(&name) {
                let known = PARAMETERS.join(", ");
                return Err(format!("a postgres URL with another parameter than {known}"));
            }
            let plus = spelled.replace('+', " ");
            let value = percent_decode_str(&plus).decode_utf8_lossy();
            match name {
                "target_session_attrs" => read.target = target(&value)?,
                "connect_timeout" => {
                    let seconds: u64 =
                        value.parse().map_err(|_| "a connect_timeout that is no whole number of seconds")?;
                    read.connect_timeout = (seconds > 0).then(|| Duration::from_secs(seconds));
                }
                "options" => {
                    read.options = Some(spelled.to_owned());
                    read.settings = settings(&value);
                }
                _ => read.pairs.push((name.to_owned(), spelled.to_owned())),
            }
            if ["sslcert", "sslkey", "sslrootcert"].contains(&name) {
                read.tls_files.push((name.to_owned(), PathBuf::from(value.as_ref())));
            }
        }
        Ok(read)
    }

    /// The servers that `hosts`, a list as it stands before the path, and parameters name: each with its host and the
    /// parameters that it is to be read with.
    fn servers(&self, hosts: &str) -> Result<Vec<(String, Pairs)>, String> {
        let hosts: Vec<&str> = hosts.split(',').collect();
        let (of_servers, common): (Vec<_>, Vec<_>) =
            self.pairs.iter().cloned().partition(|(name, _)| OF_SERVERS.contains(&name.as_str()));
        let lists: Vec<(String, Vec<String>)> = of_servers
            .into_iter()
            .map(|(name, list)| (name, list.replace("%2C", ",").split(',').map(str::to_owned).collect()))
            .collect();
        let lengths = || lists.iter().map(|(_, list)| list.len()).chain([hosts.len()]);
        let count = lengths().max().unwrap_or(1);
        if count > MAX_SERVERS {
            return Err(format!("more than {MAX_SERVERS} hosts"));
        }
        if lengths().any(|length| length != 1 && length != count) {
            return Err("lists of hosts and ports that are not equally long".into());
        }
        let at = |index: usize, length: usize| if length == 1 { 0 } else { index };
        let servers = (0..count).map(|index| {
            let mine = lists.iter().map(|(name, list)| (name.clone(), list[at(index, list.len())].clone()));
            // An empty one means the default.
            let mine = mine.filter(|(_, value)| !value.is_empty());
            (hosts[at(index, hosts.len())].to_owned(), common.iter().cloned().chain(mine).collect())
        });
        Ok(servers.collect())
    }
}

fn target(value: &str) -> Result<Target, String> {
    match value {
        "any" => Ok(Target::Any),
        "read-write" => Ok(Target::ReadWrite),
        "primary" => Ok(Target::Primary),
        "read-only" | "standby" | "prefer-standby" => Err(format!(
            "target_session_attrs={value}, but a planner writes: give read-write, primary or any"
        )),
        _ => Err("a target_session_attrs that is not read-write, primary or any".into()),
    }
}

/// The settings in a value of `options`: `-c name=value` and `--name=value`, with blanks in values after backslashes.
/// `None` when there is something else in it.
fn settings(options: &str) -> Option<Pairs> {
    let mut words: Vec<String> = vec![String::new()];
    let mut letters = options.chars();
    while let Some(letter) = letters.next() {
        match letter {
            ' ' | '\t' | '\n' => words.push(String::new()),
            '\\' => words.last_mut()?.push(letters.next()?),
            _ => words.last_mut()?.push(letter),
        }
    }
    let mut words = words.into_iter().filter(|word| !word.is_empty());
    let mut settings = Vec::new();
    while let Some(word) = words.next() {
        let setting = match word.strip_prefix("-c") {
            Some("") => words.next()?,
            Some(setting) => setting.to_owned(),
            None => word.strip_prefix("--")?.to_owned(),
        };
        let (name, value) = setting.split_once('=')?;
        settings.push((name.replace('-', "_"), value.to_owned()));
    }
    Some(settings)
}

/// Refuses characters that mean something else where they stand, of which a password is the likely place.
fn check_spelling(rest: &str) -> Result<(), String> {
    let raw = |letter: char| {
        Err(format!(
            "a raw '{letter}' in the user name or the password: write it as %{:02X}",
            u32::from(letter)
        ))
    };
    // Where the servers end, as every reader of URLs has it.
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, tail) = rest.split_at(end);
    let user_is_there = authority.contains('@');
    let hidden_at = |part: &str| !authority.is_empty() && part.contains('@');
    if let Some(at) = rest.find('#') {
        if !user_is_there && rest[at..].contains('@') {
            return raw('#');
        }
        return Err("a raw '#': write it as %23".into());
    }
    let (path, query) = tail.split_once('?').unwrap_or((tail, ""));
    if hidden_at(path) {
        return raw('/');
    }
    // A value may hold one, but no name does.
    let is_name = |pair: &str| PARAMETERS.contains(&pair.split('=').next().unwrap_or(pair));
    if !user_is_there && query.split('&').any(|pair| hidden_at(pair) && !is_name(pair)) {
        return if path.is_empty() { raw('?') } else { raw('/') };
    }
    let (user, _) = authority.rsplit_once('@').unwrap_or_default();
    if user.contains('@') {
        return raw('@');
    }
    let percent_is_raw =
        |tail: &str| !tail.as_bytes().get(..2).is_some_and(|code| code.iter().all(u8::is_ascii_hexdigit));
    if user.split('%').skip(1).any(percent_is_raw) {
        return raw('%');
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(text: &str) -> PostgresUrl {
        PostgresUrl::parse(text).unwrap_or_else(|why| panic!("{text}: {why}"))
    }

    fn places(text: &str) -> Vec<String> {
        read(text).servers().iter().map(Server::place).collect()
    }

    #[test]
    fn servers_are_read_as_libpq_does() {
        for (text, expected) in [
            ("postgres://h/d", vec!["h:5432"]),
            ("postgres://u:p@h1,h2:5433/d", vec!["h1:5432", "h2:5433"]),
            ("postgres://u@[::1]:7,10.0.0.1/d", vec!["[::1]:7", "10.0.0.1:5432"]),
            ("postgresql://u@/d?host=h1,h2&port=5,6", vec!["h1:5", "h2:6"]),
            ("postgres:///d?host=h1,h2&port=7", vec!["h1:7", "h2:7"]),
            ("postgres:///d?host=h1%2Ch2", vec!["h1:5432", "h2:5432"]),
            ("postgres:///d?host=/run/a,/run/b&user=u", vec!["/run/a", "/run/b"]),
            ("postgres://h1,h2/d?target_session_attrs=read-write&port=,9", vec!["h1:5432", "h2:9"]),
        ] {
            assert_eq!(places(text), expected, "{text}");
        }
    }

    #[test]
    fn what_is_said_beside_the_servers_is_kept() {
        let url = read(
            "postgres://u@h1,h2:1/d?connect_timeout=3&application_name=mine&target_session_attrs=primary\
             &options=-c%20search_path%3Da%2C%5C%20b%20--work-mem%3D1MB",
        );
        assert_eq!(url.target(), Target::Primary);
        assert_eq!(url.connect_timeout(), Some(Duration::from_secs(3)));
        assert_eq!(url.to_string(), "postgres://u@h1:5432,h2:1/d");
        let setting = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(url.settings(), [setting("search_path", "a, b"), setting("work_mem", "1MB")]);
        for server in url.servers() {
            assert_eq!(server.options(false).get_application_name(), Some("mine"));
            let options = "-c search_path=a,\\ b --work-mem=1MB";
            assert_eq!(server.options(false).get_options(), Some(options));
            assert_eq!(server.options(true).get_options(), None);
        }
        let plain = read("postgres://h/d?connect_timeout=0");
        assert_eq!((plain.target(), plain.connect_timeout()), (Target::Any, None));
        assert_eq!(plain.options().get_application_name(), Some(APPLICATION));
        // What is no setting is for whoever stands between, and goes there.
        let routed = read("postgres://h/d?options=endpoint%3Dx");
        assert_eq!(routed.settings(), []);
        assert_eq!(routed.servers()[0].options(true).get_options(), Some("endpoint=x"));
    }

    #[test]
    fn what_cannot_be_used_is_refused_by_name() {
        for (text, named) in [
            ("postgres://u:SEC?RET@h/d", "'?' in the user name or the password: write it as %3F"),
            ("postgres://u:SECRET?@h/d", "%3F"),
            ("postgres://u:SEC#RET@h/d", "'#' in the user name or the password: write it as %23"),
            ("postgres://u:SEC/RET@h/d", "'/' in the user name or the password: write it as %2F"),
            ("postgres://u:1/SECRET@h:5/d?sslmode=require", "%2F"),
            ("postgres://u:SEC@/RET@h/d", "%2F"),
            ("postgres://u:SEC@RET@h/d", "'@' in the user name or the password: write it as %40"),
            ("postgres://u:SEC%RET@h/d", "'%' in the user name or the password: write it as %25"),
            ("postgres://u:SECRET%2@h/d", "%25"),
            ("postgres://u:SECRET@h/d#x", "'#': write it as %23"),
            ("postgres://u:SECRET@h/d?keepalives=1", "'keepalives'"),
            ("postgres://u:SECRET@h/d?target_session_attrs=standby", "target_session_attrs=standby"),
            ("postgres://u:SECRET@h/d?target_session_attrs=SECRET", "read-write, primary or any"),
            ("postgres://u:SECRET@h/d?connect_timeout=SECRET", "connect_timeout"),
            ("postgres://u:SECRET@h/d?pasword=SECRET", "another parameter than"),
            ("postgres://u:SECRET@h1,h2,h3/d?port=1,2", "not equally long"),
            ("postgres://h:port/d", "cannot be read"),
            ("postgres://h/d?sslmode=SECRET", "cannot be read"),
        ] {
            let why = PostgresUrl::parse(text).unwrap_err();
            assert!(why.contains(named), "{text}: {why}");
            assert!(!why.contains("SEC") && !why.contains("RET"), "{text}: {why}");
        }
        let many = vec!["h"; MAX_SERVERS + 1].join(",");
        assert!(PostgresUrl::parse(&format!("postgres://{many}/d")).unwrap_err().contains("more than 16"));
        // An '@' that means nothing else stays.
        for text in ["postgres://h/d?user=me@corp", "postgres:///d?host=/run/x&password=p@q"] {
            read(text);
        }
    }

    proptest! {
        #[test]
        fn an_encoded_password_arrives_and_a_raw_one_is_never_shown(
            password in "[ -~]{1,12}", hosts in "[a-z]{1,5}(:[1-9])?(,[a-z]{1,5}){0,2}", query in "(\\?[a-z_=&]{0,12})?",
        ) {
            use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
            let encoded = utf8_percent_encode(&password, NON_ALPHANUMERIC);
            let url = read(&format!("postgres://u:{encoded}@{hosts}/d"));
            prop_assert_eq!(url.servers().len(), hosts.split(',').count());
            // However it goes on, and however much of it is taken for something else.
            let marked = format!("SECRET{password}SECRET");
            let shown = match PostgresUrl::parse(&format!("postgres://u:{marked}@{hosts}/d{query}")) {
                Ok(url) => format!("{url} {url:?}"),
                Err(why) => why,
            };
            prop_assert!(!shown.contains("SECRET"), "{shown}");
        }

        #[test]
        fn no_text_makes_it_panic(text in "postgres://[ -~]{0,40}") {
            let _ = PostgresUrl::parse(&text);
        }
    }
}
