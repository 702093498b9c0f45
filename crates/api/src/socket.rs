//! Unix sockets at paths of any length.
//!
//! A socket's address holds 107 bytes of path (unix(7)); a home or test directory may well be longer. Such
//! a path is reached through an open descriptor of its directory: `/proc/self/fd/N/name`.
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// Most bytes of a path that fits a socket's address, with its closing zero (unix(7)).
const ADDRESS_PATH_MAX: usize = 107;

/// A short way to `path`; it is good for as long as the file, if there is one, is kept.
fn short(path: &Path) -> io::Result<(PathBuf, Option<File>)> {
    if path.as_os_str().len() <= ADDRESS_PATH_MAX {
        return Ok((path.to_path_buf(), None));
    }
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "no socket can have this path"));
    };
    let directory = File::open(parent)?;
    Ok((PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd())).join(name), Some(directory)))
}

/// Connects to the socket at `path`.
pub fn connect(path: &Path) -> io::Result<UnixStream> {
    let (short, _directory) = short(path)?;
    UnixStream::connect(short)
}

/// Listens at `path`, where nothing may be.
pub fn listen(path: &Path) -> io::Result<UnixListener> {
    let (short, _directory) = short(path)?;
    UnixListener::bind(short)
}

/// Removes the socket at `path` if nobody listens on it any more: whoever did was killed. What is anybody else's stays.
pub fn remove_left(path: &Path) -> io::Result<()> {
    let is_socket = std::fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket());
    let left =
        is_socket && connect(path).is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused);
    if left { std::fs::remove_file(path) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    #[test]
    fn a_path_of_300_bytes_is_no_problem() {
        let root = std::env::temp_dir().join(format!("viv-socket-{}", std::process::id()));
        let directory = root.join("x".repeat(150)).join("y".repeat(150));
        std::fs::create_dir_all(&directory).unwrap();
        let path = directory.join("a.sock");
        let listener = listen(&path).unwrap();
        let mut there = connect(&path).unwrap();
        let (mut here, _) = listener.accept().unwrap();
        there.write_all(b"hello").unwrap();
        drop(there);
        let mut text = String::new();
        here.read_to_string(&mut text).unwrap();
        assert_eq!(text, "hello");
        std::fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn only_a_socket_that_nobody_listens_on_is_removed() {
        let root = std::env::temp_dir().join(format!("viv-left-{}", std::process::id()));
        std::fs::create_dir_all(&root).unwrap();
        let (socket, file) = (root.join("socket"), root.join("file"));
        let listener = listen(&socket).unwrap();
        std::fs::write(&file, "kept").unwrap();
        for path in [&socket, &file, &root.join("missing")] {
            remove_left(path).unwrap();
        }
        assert!(socket.exists() && file.exists());
        drop(listener);
        remove_left(&socket).unwrap();
        assert!(!socket.exists());
        std::fs::remove_dir_all(root).unwrap();
    }
}
