//! Temporary files and folders that results are written to before they are renamed, and the list of them, so that a
//! program that is ended by a signal can remove them.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Result;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tempfile::{NamedTempFile, TempDir};

/// The prefix of the names of all temporary files and folders.
const PREFIX: &str = ".fused-lora-";

/// All temporary files and folders of this process. Code that creates one, renames one or creates a file in one holds
/// the lock, so that none appears or is renamed after [`remove_staged`].
static STAGED: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

fn staged() -> MutexGuard<'static, BTreeSet<PathBuf>> {
    // A panic of a thread that held the lock cannot leave the set inconsistent.
    STAGED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// While this value lives, threads that create or rename temporary files wait.
#[derive(Debug)]
#[must_use = "files can be staged again as soon as this is dropped"]
pub struct StagedRemoved(
    #[expect(dead_code, reason = "holding it is its purpose")] MutexGuard<'static, BTreeSet<PathBuf>>,
);

/// Removes every temporary file and folder of this process. For a program that is about to end without returning from
/// the calls that write, for example from a thread that handles signals: keep the returned value until the end. A call
/// that continues afterwards returns an error and leaves its target unchanged.
pub fn remove_staged() -> StagedRemoved {
    let mut list = staged();
    for path in std::mem::take(&mut *list) {
        // The owner may just have removed it, and other failures cannot be reported any more.
        let _ = if path.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
    }
    StagedRemoved(list)
}

/// An entry of the list, removed on drop.
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

/// A temporary file, removed on drop unless it is persisted.
#[derive(Debug)]
pub(crate) struct StagedFile {
    // Fields are dropped in this order, so the file is removed before its entry.
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

    /// Renames the file to `path`, replacing a file that is there.
    pub(crate) fn persist(self, path: &Path) -> Result<()> {
        let Self { file, listed } = self;
        let list = staged();
        let persisted = file.persist(path);
        drop(list);
        drop(listed);
        persisted.map(drop).map_err(|e| e.error)
    }
}

/// A temporary folder, removed on drop with everything in it unless it is persisted.
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

    /// Creates a file in the folder.
    pub(crate) fn create(&self, name: impl AsRef<Path>) -> Result<File> {
        let _list = staged();
        File::create_new(self.folder.path().join(name))
    }

    /// Renames the folder to `path`, which must not exist.
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

/// The system's error without the temporary name; callers add the name of the file that was requested.
fn reason(error: std::io::Error) -> std::io::Error {
    let cause = error.get_ref().and_then(std::error::Error::source).and_then(|cause| cause.downcast_ref());
    match cause.and_then(std::io::Error::raw_os_error) {
        Some(code) => std::io::Error::from_raw_os_error(code),
        None => error,
    }
}
