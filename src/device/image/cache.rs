//! Compiled kernels on disk, so that NVRTC compiles each of them once per machine.
//!
//! A file's name is the digest of everything that its contents were made from, so a file is never out of date. Files
//! are written under a temporary name and renamed, so two processes may store the same file at once. A file begins with
//! the digest of its contents, so a damaged file is detected and made again. A cache that cannot be written is not an
//! error.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::{env, fs, io, process};

use sha2::{Digest, Sha256};

const DIGEST_BYTES: usize = 32;

/// The folder of compiled kernels: `$FUSED_LORA_CACHE`, else `fused-lora` in the user's cache folder. `None` if there
/// is no such folder or `$FUSED_LORA_CACHE` is empty: then nothing is cached.
pub fn folder() -> Option<PathBuf> {
    if let Some(folder) = env::var_os("FUSED_LORA_CACHE") {
        return Some(PathBuf::from(folder)).filter(|folder| !folder.as_os_str().is_empty());
    }
    // The specification of $XDG_CACHE_HOME says to ignore relative paths.
    let named = |name| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let base = named("XDG_CACHE_HOME").or_else(|| named("LOCALAPPDATA"));
    let base = base.or_else(|| named("HOME").map(|home| home.join(".cache")));
    base.map(|base| base.join("fused-lora"))
}

/// The contents stored under this name, if they are there and undamaged.
pub(crate) fn load(folder: &Path, name: &str) -> Option<Vec<u8>> {
    let mut file = fs::read(folder.join(name)).ok()?;
    let contents = file.get(DIGEST_BYTES..)?;
    let whole = file[..DIGEST_BYTES] == *Sha256::digest(contents);
    whole.then(|| file.split_off(DIGEST_BYTES))
}

/// Stores contents under this name, replacing older ones.
///
/// # Errors
/// Errors of the file system.
pub(crate) fn store(folder: &Path, name: &str, contents: &[u8]) -> io::Result<()> {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    fs::create_dir_all(folder)?;
    let unique = format!("{name}.{}.{}", process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
    let temporary = folder.join(unique);
    let file = [&Sha256::digest(contents)[..], contents].concat();
    let stored = fs::write(&temporary, file).and_then(|()| fs::rename(&temporary, folder.join(name)));
    if stored.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    stored
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_stored_is_loaded_and_what_is_damaged_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let below = folder.path().join("deeper");
        assert_eq!(load(&below, "name"), None);
        store(&below, "name", b"contents").unwrap();
        assert_eq!(load(&below, "name").as_deref(), Some(&b"contents"[..]));

        let file = fs::read(below.join("name")).unwrap();
        for damaged in [&file[..file.len() - 1], &file[..10], &[], &[&file[..], b"x"].concat()] {
            fs::write(below.join("name"), damaged).unwrap();
            assert_eq!(load(&below, "name"), None);
        }
        store(&below, "name", b"again").unwrap();
        assert_eq!(load(&below, "name").as_deref(), Some(&b"again"[..]));
        assert_eq!(fs::read_dir(&below).unwrap().count(), 1, "no temporary file is left");
    }

    #[test]
    fn many_may_store_and_load_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let contents = vec![7u8; 1 << 16];
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..20 {
                        store(folder.path(), "name", &contents).unwrap();
                        assert!(load(folder.path(), "name").unwrap() == contents);
                    }
                });
            }
        });
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_an_error_of_the_file_system() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(store(&file.path().join("below a file"), "name", b"").is_err());
    }
}
