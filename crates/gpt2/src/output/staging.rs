//! Temporary files and folders that results grow in before they get their names, and the list of them: a program that is
//! ended by a signal removes what is on it.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Result;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tempfile::{NamedTempFile, TempDir};

/// What the names of all temporary files and folders begin with.
const PREFIX: &str = ".fused-lora-";

/// Every temporary file and folder there is. Whoever makes one, renames one or makes a file in one holds the lock, so that
/// none appears or gets its name after [`remove_staged`].
static STAGED: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

fn staged() -> MutexGuard<'static, BTreeSet<PathBuf>> {
    // A set of paths is whole wherever a thread that held it panicked.
    STAGED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// While this lives, no thread can stage anything or give anything staged its name: they wait.
#[derive(Debug)]
#[must_use = "files can be staged again as soon as this is dropped"]
pub struct StagedRemoved(
    #[expect(dead_code, reason = "holding it is its purpose")] MutexGuard<'static, BTreeSet<PathBuf>>,
);

/// Removes every temporary file and folder of this process. For a program that is about to end without returning from
/// the calls that write, such as in a thread that handles signals: hold what is returned until the end. A call that goes
/// on afterwards returns an error and leaves its target as it was.
pub fn remove_staged() -> StagedRemoved {
    let mut list = staged();
    for path in std::mem::take(&mut *list) {
        // Its owner may just have removed it, and there is nobody left to tell about other failures.
        let _ = if path.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
    }
    StagedRemoved(list)
}

/// A place on the list, left when it is dropped.
#[derive(Debug)]
struct Listed(PathBuf);

impl Listed {
    fn new(list: &mut BTreeSet<PathBuf>, path: &Path) -> Self {
        list.insert(path.to_path_buf());
        Self(path.to_path_buf())
    }
}

impl Drop for Listed {
    fn drop(&mut self) {
        staged().remove(&self.0);
    }
}

fn builder() -> tempfile::Builder<'static, 'static> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(PREFIX);
    builder
}

/// A file that has no name of its own yet; removed when it is dropped.
#[derive(Debug)]
pub(crate) struct StagedFile {
    // Removed before it leaves the list: fields are dropped in this order.
    file: NamedTempFile,
    listed: Listed,
}

impl StagedFile {
    /// An empty file with the mode that the umask gives.
    pub(crate) fn new_in(folder: &Path) -> Result<Self> {
        let mut builder = builder();
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
        let mut list = staged();
        let file = builder.tempfile_in(folder).map_err(reason)?;
        let listed = Listed::new(&mut list, file.path());
        Ok(Self { file, listed })
    }

    pub(crate) fn as_file(&self) -> &File {
        self.file.as_file()
    }

    pub(crate) fn as_file_mut(&mut self) -> &mut File {
        self.file.as_file_mut()
    }

    /// Gives it its name, in the place of what has that name.
    pub(crate) fn persist(self, path: &Path) -> Result<()> {
        let Self { file, listed } = self;
        let list = staged();
        let persisted = file.persist(path);
        drop(list);
        drop(listed);
        persisted.map(drop).map_err(|e| e.error)
    }
}

/// A folder that has no name of its own yet; removed with everything in it when it is dropped.
#[derive(Debug)]
pub(crate) struct StagedFolder {
    folder: TempDir,
    listed: Listed,
}

impl StagedFolder {
    /// An empty folder with the mode that the umask gives.
    pub(crate) fn new_in(folder: &Path) -> Result<Self> {
        let mut builder = builder();
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o777));
        let mut list = staged();
        let folder = builder.tempdir_in(folder).map_err(reason)?;
        let listed = Listed::new(&mut list, folder.path());
        Ok(Self { folder, listed })
    }

    /// Makes a file in it.
    pub(crate) fn create(&self, name: impl AsRef<Path>) -> Result<File> {
        let _list = staged();
        File::create_new(self.folder.path().join(name))
    }

    /// Gives it its name, which nothing may have.
    pub(crate) fn persist(self, path: &Path) -> Result<()> {
        let Self { folder, listed } = self;
        let list = staged();
        let renamed = std::fs::rename(folder.path(), path);
        if renamed.is_ok() {
            // There is nothing left under the temporary name for the guard to remove.
            let _ = folder.keep();
        }
        drop(list);
        drop(listed);
        renamed
    }
}

/// What the system said, without the temporary name: callers name the file that was asked for.
fn reason(error: std::io::Error) -> std::io::Error {
    let cause = error.get_ref().and_then(std::error::Error::source).and_then(|cause| cause.downcast_ref());
    match cause.and_then(std::io::Error::raw_os_error) {
        Some(code) => std::io::Error::from_raw_os_error(code),
        None => error,
    }
}
