//! The file of tokens: who may do what. It is TOML, read again when it changes.
//!
//! ```toml
//! # Tokens have 16 to 512 visible characters; make them as `openssl rand -hex 32` does. Two of one principal let both be
//! # used while one is replaced by the other.
//! [[principal]]
//! name = "ranks"
//! roles = ["worker"]
//! tokens = ["3f6b0c1d9a7e4f52b8c0d1e2f3a4b5c6"]
//!
//! # `keys` are texts in which `*` stands for anything: this one may lease and register these keys alone.
//! [[principal]]
//! name = "team-b"
//! roles = ["worker"]
//! keys = ["/models/team-b/*"]
//! tokens = ["0d6f1a2b3c4d5e6f708192a3b4c5d6e7"]
//!
//! # Instead of a token its SHA-256 may stand here, as `printf %s TOKEN | sha256sum` prints it. It must be as long.
//! [[principal]]
//! name = "on-call"
//! roles = ["operator", "metrics"]
//! sha256 = ["71cce2671584b44d496762b4ee3f746e5c8b01e1e59a9aa7f353dd07aa625723"]
//!
//! # Whose JWTs are believed. `jwks_url` must begin with https://, or be on this machine; `jwks_file` names a file instead.
//! # `algorithms` may name those that are taken; without it all that are asymmetric are.
//! [[issuer]]
//! issuer = "https://kubernetes.default.svc.cluster.local"
//! audience = "rfork-planner"
//! jwks_url = "https://kubernetes.default.svc/openid/v1/jwks"
//! ca_file = "/var/run/secrets/kubernetes.io/serviceaccount/ca.crt"
//! token_file = "/var/run/secrets/kubernetes.io/serviceaccount/token"
//!
//! # Whose subject and claims fit is this principal; of several the first one. A claim fits that is the text or a list with it.
//! [[principal]]
//! name = "team-c"
//! roles = ["worker"]
//! keys = ["/models/team-c/*"]
//! jwts = [{ issuer = "https://kubernetes.default.svc.cluster.local", subject = "system:serviceaccount:team-c:*" }]
//!
//! # Whoever shows a certificate, of the CAs that `--tls-client-ca-file` names, for a DNS name or URI that fits one of these.
//! [[principal]]
//! name = "team-d"
//! roles = ["worker"]
//! certificates = ["spiffe://cluster.local/ns/team-d/*"]
//! ```

use std::collections::HashMap;
use std::hash::{Hash, Hasher};
use std::path::Path;
use std::sync::Arc;

use rfork_protocol::v2::Name;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use toml::Spanned;

use super::issuer::{self, Claims, Issuer, Rule, ToldIssuer, ToldRule};
use super::{Principal, Role};
use crate::domain::terms::Pattern;
use crate::toml_file::{self, FileError, Wrong};

/// The most principals.
const MAX_PRINCIPALS: usize = 1_000;
/// The most tokens of one.
const MAX_TOKENS: usize = 16;
/// The most issuers of JWTs.
const MAX_ISSUERS: usize = 8;
/// The most patterns of keys of one.
const MAX_KEYS: usize = 100;
/// How long the name of a certificate is, in bytes.
const NAME_BYTES: std::ops::RangeInclusive<usize> = 1..=2_048;
/// How long a token is, in bytes. A short one can be guessed.
const TOKEN_BYTES: std::ops::RangeInclusive<usize> = 16..=512;

/// What is kept of a token. How long two take to be compared does not tell how much of them is the same.
#[derive(Debug, Clone, Copy, Eq)]
struct Hashed([u8; 32]);

impl Hash for Hashed {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.hash(state);
    }
}

impl PartialEq for Hashed {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl Hashed {
    fn of(token: &[u8]) -> Self {
        Self(Sha256::digest(token).into())
    }
}

/// Who has which token. Which of them a token is compared with says a secret of the map's own.
#[derive(Debug, PartialEq, Eq, Default)]
pub struct Tokens {
    known: HashMap<Hashed, Arc<Principal>>,
    issuers: Vec<Issuer>,
    /// Whose JWTs are whose, in the order of the file.
    rules: Vec<Rule>,
    /// Whose certificates with which names are, in the order of the file.
    certificates: Vec<(Pattern, Arc<Principal>)>,
    principals: usize,
}

impl Tokens {
    /// Whose token it is.
    pub fn find(&self, token: &[u8]) -> Option<Arc<Principal>> {
        self.known.get(&Hashed::of(token)).cloned()
    }

    /// Who issues JWTs that are believed.
    pub(super) fn issuers(&self) -> &[Issuer] {
        &self.issuers
    }

    /// Whose a JWT of the issuer at this place is.
    pub(super) fn whose(&self, issuer: usize, claims: &Claims) -> Option<Arc<Principal>> {
        issuer::whose(&self.rules, issuer, claims)
    }

    /// Whose a certificate with these names is: the first principal that one of them fits.
    pub(super) fn whose_certificate(&self, names: &[String]) -> Option<Arc<Principal>> {
        let fits = |(pattern, _): &&(Pattern, _)| names.iter().any(|name| pattern.fits(name.as_bytes()));
        self.certificates.iter().find(fits).map(|(_, principal)| principal.clone())
    }

    /// How many principals there are.
    pub fn principals(&self) -> usize {
        self.principals
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    principal: Vec<Told>,
    #[serde(default)]
    issuer: Vec<Spanned<ToldIssuer>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Told {
    name: Spanned<Name>,
    roles: Vec<Role>,
    keys: Option<Vec<String>>,
    #[serde(default)]
    tokens: Vec<Spanned<String>>,
    #[serde(default)]
    sha256: Vec<Spanned<String>>,
    #[serde(default)]
    jwts: Vec<Spanned<ToldRule>>,
    #[serde(default)]
    certificates: Vec<Spanned<String>>,
}

/// Reads the file.
///
/// # Errors
/// [`FileError`], without anything that stands in the file but names.
pub fn read(path: &Path) -> Result<Tokens, FileError> {
    toml_file::read(path, parse)
}

/// What a text says that was read from this file.
///
/// # Errors
/// The same.
pub(super) fn parsed(path: &Path, text: &str) -> Result<Tokens, FileError> {
    toml_file::parsed(path, text, parse)
}

fn parse(text: &str) -> Result<Tokens, Wrong> {
    // What the parser says may quote the file.
    let form = "is not as it must be: tables [[principal]], each with name, roles (worker, operator, metrics), and tokens, \
                sha256, jwts or certificates as lists; keys for some workers; and tables [[issuer]]";
    let file: File = toml::from_str(text)
        .map_err(|error| Wrong { at: toml_file::place(&error), reason: form.to_owned() })?;
    if file.principal.is_empty() || file.principal.len() > MAX_PRINCIPALS {
        return Err(Wrong { at: 0, reason: format!("there must be 1 to {MAX_PRINCIPALS} principals") });
    }
    let issuers = issuers(file.issuer)?;
    let principals = file.principal.len();
    let (mut known, mut rules, mut certificates) = (HashMap::new(), Vec::new(), Vec::new());
    let mut names = std::collections::HashSet::new();
    for told in file.principal {
        let at = told.name.span().start;
        let name = String::from(told.name.into_inner());
        let wrong = |at: usize, why: &str| Wrong { at, reason: format!("principal {name}: {why}") };
        if !names.insert(name.clone()) {
            return Err(wrong(at, "there is another one of this name; give one of them several tokens"));
        }
        if told.roles.is_empty() {
            return Err(wrong(at, "roles must name worker, operator or metrics"));
        }
        if told.keys.is_some() && !told.roles.contains(&Role::Worker) {
            return Err(wrong(at, "keys are for the role worker"));
        }
        // None at all would be every key, which nobody means who writes so.
        if told.keys.as_ref().is_some_and(|keys| !(1..=MAX_KEYS).contains(&keys.len())) {
            let reason = format!(
                "there must be 1 to {MAX_KEYS} keys, in which * stands for anything; leave keys out for all"
            );
            return Err(wrong(at, &reason));
        }
        let hashes = told.tokens.iter().map(|token| {
            let text = token.get_ref();
            if TOKEN_BYTES.contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic()) {
                Ok((token.span().start, Hashed::of(text.as_bytes())))
            } else {
                Err(wrong(token.span().start, "a token must have 16 to 512 visible ASCII characters"))
            }
        });
        let given = told.sha256.iter().map(|hash| {
            let at = hash.span().start;
            let digits =
                unhex(hash.get_ref()).ok_or_else(|| wrong(at, "sha256 must have 64 hexadecimal digits"));
            Ok((at, digits?))
        });
        let hashes = hashes.chain(given).collect::<Result<Vec<(usize, Hashed)>, Wrong>>()?;
        if !(1..=MAX_TOKENS).contains(&(hashes.len() + told.jwts.len() + told.certificates.len())) {
            return Err(wrong(at, &format!("there must be 1 to {MAX_TOKENS} tokens, jwts or certificates")));
        }
        let keys = told.keys.iter().flatten().map(|text| Pattern::new(text)).collect();
        let principal = Arc::new(Principal { name: name.clone(), roles: told.roles, keys });
        for rule in told.jwts {
            let at = rule.span().start;
            rules.push(rule.into_inner().read(&issuers, &principal).map_err(|why| wrong(at, &why))?);
        }
        for name in told.certificates {
            if !NAME_BYTES.contains(&name.get_ref().len()) {
                return Err(wrong(name.span().start, "a certificate's name must have 1 to 2048 bytes"));
            }
            certificates.push((Pattern::new(name.get_ref()), principal.clone()));
        }
        for (at, hash) in hashes {
            if known.insert(hash, principal.clone()).is_some() {
                return Err(wrong(at, "this token stands there twice"));
            }
        }
    }
    Ok(Tokens { known, issuers, rules, certificates, principals })
}

fn issuers(told: Vec<Spanned<ToldIssuer>>) -> Result<Vec<Issuer>, Wrong> {
    let mut issuers: Vec<Issuer> = Vec::new();
    for one in told {
        let at = one.span().start;
        let wrong = |reason: String| Wrong { at, reason: format!("issuer: {reason}") };
        let issuer = one.into_inner().read().map_err(wrong)?;
        if issuers.iter().any(|known| known.name == issuer.name) {
            return Err(wrong("there is another one of this name".into()));
        }
        if issuers.len() == MAX_ISSUERS {
            return Err(wrong(format!("there may be {MAX_ISSUERS}")));
        }
        issuers.push(issuer);
    }
    Ok(issuers)
}

fn unhex(text: &str) -> Option<Hashed> {
    let digits = text.as_bytes();
    if digits.len() != 64 || !digits.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    let mut hash = [0; 32];
    for (byte, pair) in hash.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(Hashed(hash))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rfork_protocol::SeedKey;

    /// The example at the head of this file.
    fn example() -> String {
        let head = include_str!("tokens.rs").lines().take_while(|line| line.starts_with("//!"));
        let lines = head.map(|line| line.trim_start_matches("//!").trim());
        let example = lines.skip_while(|line| *line != "```toml").skip(1);
        example.take_while(|line| *line != "```").collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn the_example_is_read() {
        let tokens = parse(&example()).unwrap();
        assert_eq!((tokens.principals(), tokens.issuers().len()), (5, 1));
        let shows = |names: &[&str]| {
            let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
            tokens.whose_certificate(&names).map(|principal| principal.name.clone())
        };
        assert_eq!(shows(&["w", "spiffe://cluster.local/ns/team-d/sa/w"]).as_deref(), Some("team-d"));
        assert_eq!((shows(&[]), shows(&["spiffe://cluster.local/ns/team-e/sa/w"])), (None, None));
        let of = |token: &str| tokens.find(token.as_bytes());
        let ranks = of("3f6b0c1d9a7e4f52b8c0d1e2f3a4b5c6").unwrap();
        let team = of("0d6f1a2b3c4d5e6f708192a3b4c5d6e7").unwrap();
        assert_eq!(of("5b1f7f2c9d3e4a60b7c8d9e0f1a2b3c4").unwrap().name, "on-call");
        assert_eq!((ranks.name.as_str(), &ranks.roles[..]), ("ranks", &[Role::Worker][..]));
        for (key, all, some) in [("/models/team-b/m", true, true), ("/models/m", true, false)] {
            let key = SeedKey::new(key).unwrap();
            assert_eq!((ranks.may_use(&key), team.may_use(&key)), (all, some), "{key}");
        }
        for unknown in ["", "5b1f7f2c9d3e4a60b7c8d9e0f1a2b3c", "3f6b0c1d9a7e4f52b8c0d1e2f3a4b5c7", "ranks"] {
            assert_eq!(of(unknown), None, "{unknown}");
        }
    }

    #[test]
    fn what_the_documents_show_is_read() {
        let text = include_str!("../../../docs/security.md");
        let blocks = text.split("```toml\n").skip(1).map(|rest| rest.split("```").next().unwrap());
        let blocks: Vec<_> = blocks.filter(|block| block.contains("[[principal]]")).collect();
        assert_eq!(blocks.len(), 3, "one team, several teams, the cluster's own tokens");
        for block in blocks {
            // Tokens are left to whoever reads it.
            let mut number = 0;
            let lines = block.lines().map(|line| {
                number += 1;
                if line.starts_with("tokens = ") {
                    format!("tokens = ['0123456789abcdef-{number}']")
                } else {
                    line.into()
                }
            });
            let known = parse(&lines.collect::<Vec<_>>().join("\n"))
                .unwrap_or_else(|wrong| panic!("{block}: {wrong:?}"));
            assert_eq!(known.principals(), block.matches("[[principal]]").count());
        }
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line_and_without_a_token() {
        const ROLES: &str = "roles = ['worker']\n";
        const KEYS: &str = "audience = 'a'\njwks_file = 'f'\n";
        let principal = "\n[[principal]]\nname = 'z'\nroles = ['worker']\ntokens = ['SECRET-SECRET-SECRET']";
        let issuer = |rest: &str| format!("[[issuer]]\nissuer = 'i'\n{rest}{principal}");
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("tokens.toml");
        for (text, line, said) in [
            (String::new(), 1, "1 to 1000 principals"),
            ("[[principal]]\nname = 'a'\nroles = ['worker']\ntokens = 'SECRET-SECRET-SECRET'".into(), 4, "is not as it must be"),
            ("[[principal]]\nname = 'a'\nroles = ['SECRET-SECRET-SECRET']".into(), 3, "is not as it must be"),
            (format!("[[principal]]\nname = 'a'\n{ROLES}tokens = ['SECRET']"), 4, "principal a: a token must have 16"),
            (format!("[[principal]]\nname = 'a'\n{ROLES}tokens = ['SECRET SECRET SECRET']"), 4, "visible"),
            (format!("[[principal]]\nname = 'a'\n{ROLES}sha256 = ['SECRET']"), 4, "64 hexadecimal digits"),
            (format!("[[principal]]\nname = 'a'\n{ROLES}"), 2, "1 to 16 tokens"),
            ("[[principal]]\nname = 'a'\nroles = []\ntokens = ['SECRET-SECRET-SECRET']".into(), 2, "roles must name"),
            (format!("[[principal]]\nname = 'a'\n{ROLES}keys = []\ntokens = ['SECRET-SECRET-SECRET']"), 2, "1 to 100 keys"),
            (
                "[[principal]]\nname = 'a'\nroles = ['metrics']\nkeys = ['k']\ntokens = ['SECRET-SECRET-SECRET']".into(),
                2,
                "keys are for the role worker",
            ),
            (
                format!("[[principal]]\nname = 'a'\n{ROLES}tokens = ['SECRET-SECRET-SECRET', 'SECRET-SECRET-SECRET']"),
                4,
                "stands there twice",
            ),
            (
                format!(
                    "[[principal]]\nname = 'a'\n{ROLES}tokens = ['SECRET-SECRET-SECRET']\n\n[[principal]]\nname = 'a'\n{ROLES}"
                ),
                7,
                "another one of this name",
            ),
            (issuer("audience = 'a'\njwks_url = 'http://issuer.example/keys'"), 1, "issuer: jwks_url must begin with https"),
            (issuer("audience = 'a'\njwks_url = 'https://u:SECRET@issuer.example/keys'"), 1, "must have no user"),
            (issuer("audience = 'a'"), 1, "jwks_url or jwks_file"),
            (issuer("audience = ''\njwks_file = 'f'"), 1, "audience must have 1 to 2048 bytes"),
            (issuer("audience = 'a'\njwks_file = 'f'\nca_file = 'c'"), 1, "are for jwks_url"),
            (issuer("audience = 'a'\njwks_file = 'f'\nalgorithms = ['HS256']"), 1, "algorithms must be of RS256"),
            (issuer("audience = 'a'\njwks_file = 'f'\nalgorithms = ['none']"), 1, "algorithms must be of RS256"),
            (issuer("audience = 'a'\njwks_file = 'f'\nalgorithms = []"), 1, "name one at least"),
            (issuer(&format!("{KEYS}[[issuer]]\nissuer = 'i'\n{KEYS}")), 5, "another one of this name"),
            (issuer(&format!("{KEYS}[[principal]]\nname = 'a'\n{ROLES}jwts = [{{ issuer = 'i' }}]")), 8, "take a subject or claims"),
            (
                issuer(&format!("{KEYS}[[principal]]\nname = 'a'\n{ROLES}jwts = [{{ issuer = 'j', subject = 's' }}]")),
                8,
                "must be one of a table [[issuer]]",
            ),
        ] {
            std::fs::write(&path, &text).unwrap();
            let error = read(&path).unwrap_err().to_string();
            let place = format!("{} line {line}: ", path.display());
            assert!(error.starts_with(&place) && error.contains(said), "{text}: {error}");
            assert!(!error.contains("SECRET"), "{error}");
        }
    }
}
