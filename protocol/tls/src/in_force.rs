//! What files say, and what is in force while they cannot be used: what they said before.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use sha2::{Digest, Sha256};

use crate::files::{self, FileError};

/// Between two looks at files.
const LOOK_PAUSE: Duration = Duration::from_secs(2);

/// Files that say something together.
pub trait Files: fmt::Debug + Send + Sync + 'static {
    /// What they say.
    type Said: fmt::Debug + Send + Sync + 'static;

    /// Where they are.
    fn paths(&self) -> Vec<&Path>;

    /// What their contents say.
    ///
    /// # Errors
    /// What is wrong in which of them.
    fn understand(&self, contents: &Contents) -> Result<Self::Said, FileError>;
}

/// What stands in files.
#[derive(PartialEq, Eq)]
pub struct Contents(Vec<(PathBuf, Vec<u8>)>);

impl Contents {
    fn read(files: &impl Files) -> Result<Self, FileError> {
        let read = |path: &Path| Ok((path.to_owned(), files::read(path)?));
        files.paths().into_iter().map(read).collect::<Result<_, _>>().map(Self)
    }

    /// What stands in this one; nothing, if it is none of them.
    pub fn of(&self, path: &Path) -> &[u8] {
        self.0.iter().find(|(known, _)| known == path).map_or(&[], |(_, bytes)| bytes)
    }

    fn hash(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        for (_, bytes) in &self.0 {
            hash.update((bytes.len() as u64).to_le_bytes());
            hash.update(bytes);
        }
        hash.finalize().into()
    }
}

/// What files said last that could be used.
pub struct InForce<F: Files> {
    files: F,
    now: RwLock<Now<F::Said>>,
}

struct Now<S> {
    said: Arc<S>,
    /// Of the contents; a key is not kept to be compared with.
    hash: [u8; 32],
}

impl<F: Files> fmt::Debug for InForce<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InForce").field("files", &self.files).finish_non_exhaustive()
    }
}

/// What came of a look at files.
#[derive(Debug, PartialEq, Eq)]
pub enum Looked {
    /// They are as they were.
    Same,
    /// What they say now is in force from now on.
    Anew,
    /// They cannot be used for this reason; what they said before stays in force.
    Wrong(FileError),
}

impl<F: Files> InForce<F> {
    /// Reads the files, which blocks.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn read(files: F) -> Result<Self, FileError> {
        let contents = Contents::read(&files)?;
        let said = Arc::new(files.understand(&contents)?);
        let now = RwLock::new(Now { said, hash: contents.hash() });
        Ok(Self { files, now })
    }

    /// Where they are.
    pub fn files(&self) -> &F {
        &self.files
    }

    /// What is in force.
    pub fn now(&self) -> Arc<F::Said> {
        self.now.read().unwrap_or_else(PoisonError::into_inner).said.clone()
    }

    /// Looks at the files again, which blocks.
    pub fn look(&self) -> Looked {
        let contents = match Contents::read(&self.files) {
            Ok(contents) => contents,
            Err(error) => return Looked::Wrong(error),
        };
        let hash = contents.hash();
        if self.now.read().unwrap_or_else(PoisonError::into_inner).hash == hash {
            return Looked::Same;
        }
        match self.files.understand(&contents) {
            Ok(said) => {
                *self.now.write().unwrap_or_else(PoisonError::into_inner) =
                    Now { said: Arc::new(said), hash };
                Looked::Anew
            }
            Err(error) => Looked::Wrong(error),
        }
    }
}

/// Looks again and again until it is dropped, and tells what came of it. A file that is wrong is told of at the second look that
/// finds it so: certificate and key are seldom replaced in the same moment.
pub async fn watch<F: Files>(in_force: Arc<InForce<F>>, tell: impl Fn(&Looked) + Send) {
    let mut last = Looked::Same;
    loop {
        tokio::time::sleep(LOOK_PAUSE).await;
        let looking = in_force.clone();
        let looked = match tokio::task::spawn_blocking(move || looking.look()).await {
            Ok(looked) => looked,
            // The process ends.
            Err(error) if error.is_cancelled() => return,
            // It panicked, which was logged.
            Err(_) => continue,
        };
        let is_first = matches!(looked, Looked::Wrong(_)) && !matches!(last, Looked::Wrong(_));
        if !is_first {
            tell(&looked);
        }
        last = looked;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two files with a number each, the same one.
    #[derive(Debug)]
    struct Numbers([PathBuf; 2]);

    impl Files for Numbers {
        type Said = u32;

        fn paths(&self) -> Vec<&Path> {
            self.0.iter().map(PathBuf::as_path).collect()
        }

        fn understand(&self, contents: &Contents) -> Result<u32, FileError> {
            let [first, second] = &self.0;
            let number = |path: &Path| {
                String::from_utf8_lossy(contents.of(path))
                    .parse::<u32>()
                    .map_err(|error| FileError::new(path, error.to_string()))
            };
            let (number, other) = (number(first)?, number(second)?);
            if number == other { Ok(number) } else { Err(FileError::new(second, "another number")) }
        }
    }

    #[test]
    fn what_cannot_be_used_leaves_in_force_what_was() {
        let home = tempfile::tempdir().unwrap();
        let paths = ["a", "b"].map(|name| home.path().join(name));
        let [a, b] = paths.clone();
        let write = |path: &Path, text: &str| std::fs::write(path, text).unwrap();
        assert!(InForce::read(Numbers(paths.clone())).is_err());
        write(&a, "1");
        write(&b, "1");
        let in_force = InForce::read(Numbers(paths)).unwrap();
        assert_eq!((in_force.look(), *in_force.now()), (Looked::Same, 1));
        write(&a, "2");
        assert_eq!(
            (in_force.look(), *in_force.now()),
            (Looked::Wrong(FileError::new(&b, "another number")), 1)
        );
        write(&b, "2");
        assert_eq!((in_force.look(), *in_force.now()), (Looked::Anew, 2));
        write(&a, "x");
        assert!(
            matches!(in_force.look(), Looked::Wrong(error) if error.to_string().starts_with(&a.display().to_string()))
        );
        std::fs::remove_file(&b).unwrap();
        assert!(
            matches!(in_force.look(), Looked::Wrong(error) if error.to_string().starts_with(&b.display().to_string()))
        );
        // What was is good again.
        write(&a, "2");
        write(&b, "2");
        assert_eq!((in_force.look(), *in_force.now()), (Looked::Same, 2));
    }
}
