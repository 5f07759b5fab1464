//! The token that a worker shows its planner. It stands in a file, which is read for each request: whoever replaces the
//! token need not start the worker again.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http::HeaderValue;
use reqwest::Url;
use rfork_tls::files;

/// The longest file that is read, in bytes: a planner reads a header of 8 KiB.
const MAX_BYTES: u64 = 8 * 1024 - 7;
/// How long reading it may take: it may be on a disk that is away.
const READ_DEADLINE: Duration = Duration::from_secs(2);

/// A file that holds a token, and nothing else but blanks and line ends around it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenFile(PathBuf);

/// A token that cannot be had. Its text never holds the token.
#[derive(Debug, thiserror::Error)]
#[error("the token in {} cannot be used: {why}", path.display())]
pub struct TokenError {
    path: PathBuf,
    why: String,
}

impl TokenFile {
    /// The file at this path; it need not be there yet.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// What goes into the header `Authorization`, as RFC 6750 has it.
    ///
    /// # Errors
    /// [`TokenError`].
    pub async fn header(&self) -> Result<HeaderValue, TokenError> {
        let failed = |why: String| TokenError { path: self.0.clone(), why };
        let path = self.0.clone();
        let reading = tokio::task::spawn_blocking(move || files::bounded(&path, MAX_BYTES));
        let text = match tokio::time::timeout(READ_DEADLINE, reading).await {
            Ok(Ok(read)) => read.map_err(|error| failed(error.to_string()))?,
            Ok(Err(_)) => return Err(failed("reading it was stopped".into())),
            Err(_) => return Err(failed(format!("it was not read within {READ_DEADLINE:?}"))),
        };
        let token = text.trim_ascii();
        if token.is_empty() || !token.iter().all(u8::is_ascii_graphic) {
            return Err(failed("it must have visible ASCII characters alone".into()));
        }
        let mut value = HeaderValue::from_bytes(&[b"Bearer ", token].concat())
            .map_err(|_| failed("it cannot stand in a header".into()))?;
        value.set_sensitive(true);
        Ok(value)
    }
}

/// Whether a URL has a user or a password, which is a credential of its own.
pub fn has_credential(url: &Url) -> bool {
    !url.username().is_empty() || url.password().is_some()
}

/// Whether what is sent to this URL is seen by nobody between: by TLS, or because it does not leave the machine.
pub fn is_private(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    url.scheme() == "https"
        || host == "localhost"
        || host.parse::<IpAddr>().is_ok_and(|address| address.to_canonical().is_loopback())
}

#[cfg(test)]
mod tests {
    use rustix::fs::{CWD, FileType, Mode, mknodat};

    use super::*;

    #[tokio::test]
    async fn a_token_is_read_as_it_is_now() {
        let home = tempfile::tempdir().unwrap();
        let file = TokenFile::new(home.path().join("token"));
        for (text, said) in [
            (None, "No such file"),
            (Some(""), "visible ASCII"),
            (Some(" \n"), "visible ASCII"),
            (Some("SECRET and more"), "visible ASCII"),
            (Some("SECRET\u{e9}"), "visible ASCII"),
            (Some(&*"SECRET".repeat(2_000)), "more than 8185 bytes"),
        ] {
            if let Some(text) = text {
                std::fs::write(file.path(), text).unwrap();
            }
            let error = file.header().await.unwrap_err().to_string();
            assert!(error.contains(said) && !error.contains("SECRET"), "{error}");
        }
        let pipe = TokenFile::new(home.path().join("pipe"));
        mknodat(CWD, pipe.path(), FileType::Fifo, Mode::RUSR, 0).unwrap();
        for file in [pipe, TokenFile::new("/dev/zero"), TokenFile::new(home.path())] {
            let error = file.header().await.unwrap_err().to_string();
            assert!(error.ends_with("it is not a regular file"), "{error}");
        }
        for token in ["first", "second"] {
            std::fs::write(file.path(), format!("  {token}\r\n")).unwrap();
            let header = file.header().await.unwrap();
            assert_eq!(header.to_str().unwrap(), format!("Bearer {token}"));
            assert!(!format!("{header:?}").contains(token), "{header:?}");
        }
    }

    #[test]
    fn a_token_is_sent_where_nobody_else_hears_it() {
        for (url, private) in [
            ("https://planner", true),
            ("http://planner:1223", false),
            ("http://localhost:1223", true),
            ("http://127.0.0.2:1223", true),
            ("http://[::1]:1223", true),
            ("http://[::ffff:127.0.0.1]:1223", true),
            ("http://10.0.0.1", false),
            ("http://localhost.example", false),
        ] {
            assert_eq!(is_private(&Url::parse(url).unwrap()), private, "{url}");
        }
    }
}
