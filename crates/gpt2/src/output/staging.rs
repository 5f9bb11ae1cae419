//! Temporary files and folders, to which results are written before they are renamed, and a list of them, so that a
//! program that a signal ends can remove them.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Result;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tempfile::{NamedTempFile, TempDir};

/// The prefix of the names of all temporary files and folders.
const PREFIX: &str = ".fused-lora-";

/// All temporary files and folders of this process. Code that creates or renames one, or creates a file in one, holds
/// the lock, so that none appears after [`remove_staged`].
static STAGED: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

fn staged() -> MutexGuard<'static, BTreeSet<PathBuf>> {
    // The set is consistent even if a thread panicked while it held the lock.
    STAGED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// As long as this value lives, threads that create or rename temporary files wait.
#[derive(Debug)]
#[must_use = "temporary files can be created again once this is dropped"]
pub struct StagedRemoved(
    #[expect(dead_code, reason = "it is kept only to hold the lock")] MutexGuard<'static, BTreeSet<PathBuf>>,
);

/// Removes every temporary file and folder of this process. It is for a program that is about to end while calls are
/// still writing, for example because of a signal: keep the returned value until the end. A call that continues
/// afterwards returns an error and leaves its target unchanged.
pub fn remove_staged() -> StagedRemoved {
    let mut list = staged();
    for path in std::mem::take(&mut *list) {
        // It may just have been removed; other errors cannot be reported any more.
        let _ = if path.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
    }
    StagedRemoved(list)
}

/// An entry of the list, removed on drop.
#[derive(Debug)]
struct StagedEntry(PathBuf);

impl StagedEntry {
    fn new(list: &mut BTreeSet<PathBuf>, path: &Path) -> Self {
        list.insert(path.to_path_buf());
        Self(path.to_path_buf())
    }
}

impl Drop for StagedEntry {
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
    entry: StagedEntry,
}

impl StagedFile {
    /// An empty file with the mode that the umask gives.
    pub(crate) fn new_in(folder: &Path) -> Result<Self> {
        let mut builder = builder();
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
        let mut list = staged();
        let file = builder.tempfile_in(folder).map_err(reason)?;
        let entry = StagedEntry::new(&mut list, file.path());
        Ok(Self { file, entry })
    }

    pub(crate) fn as_file(&self) -> &File {
        self.file.as_file()
    }

    pub(crate) fn as_file_mut(&mut self) -> &mut File {
        self.file.as_file_mut()
    }

    /// Renames the file to `path`, replacing a file that is there.
    pub(crate) fn persist(self, path: &Path) -> Result<()> {
        let Self { file, entry } = self;
        let list = staged();
        let persisted = file.persist(path);
        drop(list);
        drop(entry);
        persisted.map(drop).map_err(|e| e.error)
    }
}

/// A temporary folder, removed on drop with everything in it unless it is persisted.
#[derive(Debug)]
pub(crate) struct StagedFolder {
    folder: TempDir,
    entry: StagedEntry,
}

impl StagedFolder {
    /// An empty folder with the mode that the umask gives.
    pub(crate) fn new_in(folder: &Path) -> Result<Self> {
        let mut builder = builder();
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o777));
        let mut list = staged();
        let folder = builder.tempdir_in(folder).map_err(reason)?;
        let entry = StagedEntry::new(&mut list, folder.path());
        Ok(Self { folder, entry })
    }

    /// Creates a file in the folder.
    pub(crate) fn create(&self, name: impl AsRef<Path>) -> Result<File> {
        let _list = staged();
        File::create_new(self.folder.path().join(name))
    }

    /// Renames the folder to `path`, which must not exist.
    pub(crate) fn persist(self, path: &Path) -> Result<()> {
        let Self { folder, entry } = self;
        let list = staged();
        let renamed = std::fs::rename(folder.path(), path);
        if renamed.is_ok() {
            // There is nothing left under the temporary name for the guard to remove.
            let _ = folder.keep();
        }
        drop(list);
        drop(entry);
        renamed
    }
}

/// The system's error without the temporary file's name; callers add the path that was requested.
fn reason(error: std::io::Error) -> std::io::Error {
    let cause = error.get_ref().and_then(std::error::Error::source).and_then(|cause| cause.downcast_ref());
    match cause.and_then(std::io::Error::raw_os_error) {
        Some(code) => std::io::Error::from_raw_os_error(code),
        None => error,
    }
}
