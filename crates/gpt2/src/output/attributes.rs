//! Attributes of an output file: its kind, write permission, mode and owner, and whether two paths are the same file.

#[cfg(unix)]
pub(super) use self::unix::{
    check_kind, check_permission, inode, is_character_device, is_descriptor, is_stdout, keep, same_file,
};

#[cfg(unix)]
mod unix {
    use std::fs::{File, Metadata, Permissions};
    use std::io::Result;
    use std::os::fd::AsFd;
    use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, fchown};
    use std::path::Path;

    /// Mode bits without set-user-ID, set-group-ID and sticky.
    const ACCESS: u32 = 0o777;

    /// An error for kinds of files that no result is written to.
    pub(crate) fn check_kind(metadata: &Metadata) -> std::result::Result<(), String> {
        let kind = metadata.file_type();
        let refused = if kind.is_dir() {
            "it is a directory"
        } else if kind.is_block_device() {
            "it is a block device"
        } else if kind.is_socket() {
            "it is a socket"
        } else {
            return Ok(());
        };
        Err(refused.to_owned())
    }

    /// Fails if this process may not write to the file at `path`.
    pub(crate) fn check_permission(path: &Path) -> Result<()> {
        Ok(rustix::fs::access(path, rustix::fs::Access::WRITE_OK)?)
    }

    pub(crate) fn inode(metadata: &Metadata) -> (u64, u64) {
        (metadata.dev(), metadata.ino())
    }

    pub(crate) fn same_file(a: &Metadata, b: &Metadata) -> bool {
        inode(a) == inode(b)
    }

    pub(crate) fn is_character_device(path: &Path) -> bool {
        std::fs::metadata(path).is_ok_and(|m| m.file_type().is_char_device())
    }

    /// Whether a path is standard output: a link to its descriptor, or the file, FIFO or terminal that it is open on.
    /// Other devices do not count: writing to `/dev/null` twice does no harm.
    pub(crate) fn is_stdout(path: &Path, metadata: &Metadata) -> bool {
        let Ok(stdout) = std::io::stdout().as_fd().try_clone_to_owned() else { return false };
        let stdout = File::from(stdout);
        let Ok(open) = stdout.metadata() else { return false };
        let terminal = std::io::IsTerminal::is_terminal(&stdout);
        let device = metadata.file_type().is_char_device() && !terminal;
        same_file(metadata, &open) && (!device || names_stdout(path))
    }

    /// Whether a chain of links leads to this process's descriptor 1.
    fn names_stdout(path: &Path) -> bool {
        let mut path = path.to_path_buf();
        for _ in 0..super::super::MAX_LINKS {
            if is_descriptor(&path) {
                return path.file_name().is_some_and(|name| name == "1");
            }
            match std::fs::read_link(&path) {
                Ok(link) => path = super::super::folder_of(&path).join(link),
                Err(_) => return false,
            }
        }
        false
    }

    /// Whether a link stands for an open descriptor, as those in `/proc/self/fd` do. The file that such a link names
    /// may no longer exist.
    pub(crate) fn is_descriptor(link: &Path) -> bool {
        let Ok(folder) = std::fs::canonicalize(super::super::folder_of(link)) else { return false };
        folder.starts_with("/proc") && folder.file_name().is_some_and(|name| name == "fd")
    }

    /// Gives a new file the owner and the mode of the file that it will replace, if there is one.
    pub(crate) fn keep(file: &File, replaced: &Path) -> Result<()> {
        let Ok(old) = std::fs::metadata(replaced) else { return Ok(()) };
        // Only root may change a file's owner; the owner may change its group to another of their own.
        let mode = if fchown(file, Some(old.uid()), Some(old.gid())).is_ok() {
            old.mode() & 0o7777
        } else if fchown(file, None, Some(old.gid())).is_ok() {
            old.mode() & ACCESS
        } else {
            // The group could not be kept, so the new group gets the permissions of others.
            old.mode() & 0o707 | (old.mode() & 0o007) << 3
        };
        if file.metadata()?.mode() & 0o7777 == mode {
            return Ok(());
        }
        file.set_permissions(Permissions::from_mode(mode))
    }
}

#[cfg(not(unix))]
pub(super) use self::other::{
    check_kind, check_permission, inode, is_character_device, is_descriptor, is_stdout, keep, same_file,
};

#[cfg(not(unix))]
mod other {
    use std::fs::{File, Metadata};
    use std::io::Result;
    use std::path::Path;

    pub(crate) fn check_kind(metadata: &Metadata) -> std::result::Result<(), String> {
        if metadata.is_dir() { Err("it is a directory".to_owned()) } else { Ok(()) }
    }

    pub(crate) fn check_permission(_: &Path) -> Result<()> {
        Ok(())
    }

    /// There are no inodes, but times and length distinguish files well enough to refuse an input as an output.
    pub(crate) fn inode(metadata: &Metadata) -> (u64, u64) {
        let since = |time: Result<std::time::SystemTime>| {
            time.ok().and_then(|t| t.duration_since(std::time::UNIX_EPOCH).ok()).map_or(0, |d| d.as_nanos() as u64)
        };
        (since(metadata.created()), since(metadata.modified()) ^ metadata.len())
    }

    pub(crate) fn same_file(a: &Metadata, b: &Metadata) -> bool {
        inode(a) == inode(b)
    }

    pub(crate) fn is_character_device(_: &Path) -> bool {
        false
    }

    pub(crate) fn is_stdout(_: &Path, _: &Metadata) -> bool {
        false
    }

    pub(crate) fn is_descriptor(_: &Path) -> bool {
        false
    }

    pub(crate) fn keep(_: &File, _: &Path) -> Result<()> {
        Ok(())
    }
}
