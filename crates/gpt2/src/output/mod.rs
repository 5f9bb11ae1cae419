//! Output files: a regular file is replaced as a whole; a device, FIFO or descriptor is written to directly.

mod attributes;
mod staging;

use std::fs::File;
use std::io::{BufWriter, Error as IoError, ErrorKind, Write};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

use self::staging::StagedFile;
pub(crate) use self::staging::StagedFolder;
pub use self::staging::{StagedRemoved, remove_staged};

/// Bytes of the write buffer.
const BUFFER: usize = 1 << 20;

/// The largest number of symbolic links that Linux follows in one path.
const MAX_LINKS: usize = 40;

/// A path to write a result to, checked before the result is computed.
#[derive(Debug)]
pub struct Output {
    path: PathBuf,
    destination: Destination,
}

#[derive(Debug, PartialEq, Eq)]
enum Destination {
    /// A regular file, or one that does not exist yet: its path after all symbolic links.
    File(PathBuf),
    /// The process's standard output, whatever the path.
    Stdout,
    /// A regular file that the process has open, such as `/dev/fd/3`. It may no longer have a name, so it is appended
    /// to.
    Descriptor,
    /// A character device or a FIFO.
    Direct,
}

/// Identifies a destination, whatever path leads to it.
#[derive(Debug, PartialEq, Eq)]
enum Identity {
    /// Device and inode.
    Inode((u64, u64)),
    /// A file that does not exist yet: device and inode of its folder, and its name.
    New((u64, u64), std::ffi::OsString),
}

impl Output {
    /// Checks `path`, and creates and removes a temporary file if one will be needed.
    ///
    /// # Errors
    /// [`Error::Unwritable`] for a folder, a block device, a socket, a write-protected file, a name without a folder,
    /// or a folder in which no file can be created.
    pub fn at(path: &Path) -> Result<Self> {
        let destination = Destination::of(path).map_err(|reason| Error::Unwritable { path: path.into(), reason })?;
        Ok(Self { path: path.into(), destination })
    }

    /// Whether this is the process's standard output; nothing else should be printed there then.
    pub fn is_stdout(&self) -> bool {
        self.destination == Destination::Stdout
    }

    /// Whether a second write replaces the first. A device, a FIFO or standard output receives both.
    pub fn is_replaced(&self) -> bool {
        matches!(self.destination, Destination::File(_))
    }

    /// Whether both are the same file or FIFO. Devices such as `/dev/null` may be shared.
    pub fn is_same(&self, other: &Self) -> bool {
        let (Ok(own), Ok(others)) = (self.identity(), other.identity()) else { return false };
        let shared = self.destination == Destination::Direct && attributes::is_character_device(&self.path);
        (self.is_stdout() && other.is_stdout()) || (!shared && own == others)
    }

    /// Refuses to write to `input` or, if it is a folder, to a file directly in it, under any name: input files must
    /// not be replaced. An `input` that does not exist is accepted.
    ///
    /// # Errors
    /// [`Error::OutputIsInput`]; [`Error::Io`] if the folder cannot be read.
    pub fn refuse_input(&self, input: &Path) -> Result<()> {
        let Ok(own) = std::fs::metadata(&self.path) else { return Ok(()) };
        let same = |path: &Path| std::fs::metadata(path).is_ok_and(|m| m.is_file() && attributes::same_file(&m, &own));
        let io = |source| Error::Io { path: input.into(), source };
        let found = if input.is_dir() {
            let entries =
                std::fs::read_dir(input).and_then(Iterator::collect::<std::io::Result<Vec<_>>>).map_err(io)?;
            entries.into_iter().map(|entry| entry.path()).find(|path| same(path))
        } else {
            same(input).then(|| input.to_path_buf())
        };
        match found {
            Some(input) => Err(Error::OutputIsInput { path: self.path.clone(), input }),
            None => Ok(()),
        }
    }

    /// Writes what `write` writes. A file is written completely or not at all: a temporary file next to it is renamed.
    /// A replaced file keeps its mode and, if the system allows, its owner; a new file's mode follows the umask.
    /// Symbolic links are kept. A closed pipe on standard output is not an error.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn write(&self, write: impl FnOnce(&mut dyn Write) -> std::io::Result<()>) -> Result<()> {
        let io = |source| Error::Io { path: self.path.clone(), source };
        match &self.destination {
            Destination::File(target) => {
                let mut staged = StagedFile::new_in(folder_of(target)).map_err(io)?;
                attributes::keep(staged.as_file(), target).map_err(io)?;
                write_buffered(staged.as_file_mut(), write).map_err(io)?;
                staged.persist(target).map_err(io)
            }
            Destination::Stdout => match write_buffered(&mut std::io::stdout().lock(), write) {
                Err(e) if e.kind() == ErrorKind::BrokenPipe => Ok(()),
                other => other.map_err(io),
            },
            Destination::Descriptor => {
                let mut file = File::options().append(true).open(&self.path).map_err(io)?;
                write_buffered(&mut file, write).map_err(io)
            }
            Destination::Direct => {
                let mut file = File::options().write(true).open(&self.path).map_err(io)?;
                write_buffered(&mut file, write).map_err(io)
            }
        }
    }

    fn identity(&self) -> std::io::Result<Identity> {
        match (std::fs::metadata(&self.path), &self.destination) {
            (Ok(metadata), _) => Ok(Identity::Inode(attributes::inode(&metadata))),
            (Err(_), Destination::File(target)) => {
                let folder = std::fs::metadata(folder_of(target))?;
                Ok(Identity::New(attributes::inode(&folder), target.file_name().unwrap_or_default().to_owned()))
            }
            (Err(error), _) => Err(error),
        }
    }
}

impl Destination {
    /// The destination that a path leads to, or why nothing can be written there.
    fn of(path: &Path) -> std::result::Result<Self, String> {
        let text = |error: IoError| error.to_string();
        let metadata = match std::fs::metadata(path) {
            Ok(metadata) => Some(metadata),
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(error) => return Err(text(error)),
        };
        if let Some(metadata) = &metadata {
            if attributes::is_stdout(path, metadata) {
                return Ok(Self::Stdout);
            }
            attributes::check_kind(metadata)?;
            attributes::check_permission(path).map_err(text)?;
            if !metadata.is_file() {
                return Ok(Self::Direct);
            }
        }
        let Some(target) = follow(path).map_err(text)? else { return Ok(Self::Descriptor) };
        if target.file_name().is_none() || path.as_os_str().as_encoded_bytes().ends_with(b"/") {
            return Err("it does not name a file".to_owned());
        }
        StagedFile::new_in(folder_of(&target)).map_err(text)?;
        Ok(Self::File(target))
    }
}

/// The path after all symbolic links, whether or not it exists; `None` if one of the links stands for an open
/// descriptor.
fn follow(path: &Path) -> std::io::Result<Option<PathBuf>> {
    let mut path = path.to_path_buf();
    for _ in 0..MAX_LINKS {
        match std::fs::symlink_metadata(&path) {
            Ok(metadata) if metadata.is_symlink() => {
                if attributes::is_descriptor(&path) {
                    return Ok(None);
                }
                path = folder_of(&path).join(std::fs::read_link(&path)?);
            }
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => return Ok(Some(path)),
        }
    }
    Err(IoError::other("there are too many symbolic links"))
}

/// The folder that a file is in.
fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn write_buffered(
    to: &mut dyn Write,
    write: impl FnOnce(&mut dyn Write) -> std::io::Result<()>,
) -> std::io::Result<()> {
    let mut buffered = BufWriter::with_capacity(BUFFER, to);
    write(&mut buffered)?;
    buffered.flush()
}

/// Writes to `path` as [`Output::write`] does: a file is written completely or not at all; a device or a FIFO is
/// written to directly.
///
/// # Errors
/// [`Error::Unwritable`], [`Error::Io`].
pub fn write_atomically(path: &Path, write: impl FnOnce(&mut dyn Write) -> std::io::Result<()>) -> Result<()> {
    Output::at(path)?.write(write)
}

/// Refuses a new folder at `out` that would lie in `input`.
///
/// # Errors
/// [`Error::OutputIsInput`]; [`Error::Io`] if either path cannot be checked.
pub(crate) fn refuse_inside(out: &Path, input: &Path) -> Result<()> {
    let at = |path: &Path| {
        let path = path.to_path_buf();
        move |source| Error::Io { path, source }
    };
    let input_metadata = std::fs::metadata(input).map_err(at(input))?;
    let folder = std::fs::canonicalize(folder_of(out)).map_err(at(out))?;
    let inside = |folder: &Path| std::fs::metadata(folder).is_ok_and(|m| attributes::same_file(&m, &input_metadata));
    if folder.ancestors().any(inside) {
        return Err(Error::OutputIsInput { path: out.into(), input: input.into() });
    }
    Ok(())
}
