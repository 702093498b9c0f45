//! The errors of WASI preview 1 (`errno` in `typenames.witx`).
use rustix::io::Errno as Os;
use viv_process::Stopped;

/// An error that a program gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub(crate) enum Errno {
    TooBig = 1,
    Access = 2,
    Again = 6,
    BadFd = 8,
    Busy = 10,
    ConnectionAborted = 13,
    ConnectionRefused = 14,
    ConnectionReset = 15,
    Exists = 20,
    Fault = 21,
    FileTooBig = 22,
    IllegalSequence = 25,
    Interrupted = 27,
    Invalid = 28,
    Io = 29,
    IsDirectory = 31,
    Loop = 32,
    TooManyFiles = 33,
    TooManyLinks = 34,
    NameTooLong = 37,
    NoBuffers = 42,
    NoEntry = 44,
    NoMemory = 48,
    NoSpace = 51,
    NotConnected = 53,
    NotDirectory = 54,
    NotEmpty = 55,
    NotSocket = 57,
    NotSupported = 58,
    NoDevice = 60,
    Overflow = 61,
    NotPermitted = 63,
    Pipe = 64,
    ReadOnly = 69,
    IllegalSeek = 70,
    TimedOut = 73,
    OtherDevice = 75,
    NotCapable = 76,
}

/// Why a call did not do what it was to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fail {
    /// The program is told this.
    Errno(Errno),
    /// The program ends here.
    Stopped,
    /// The program is to be saved where it waits, and then makes the same call again: nothing has been done yet.
    Wanted,
    /// The program ends itself.
    Exit(u8),
}

impl From<Errno> for Fail {
    fn from(errno: Errno) -> Fail {
        Fail::Errno(errno)
    }
}

impl From<Stopped> for Fail {
    fn from(_: Stopped) -> Fail {
        Fail::Stopped
    }
}

impl From<Os> for Errno {
    fn from(os: Os) -> Errno {
        match os {
            Os::TOOBIG => Errno::TooBig,
            Os::ACCESS => Errno::Access,
            Os::AGAIN => Errno::Again,
            Os::BADF => Errno::BadFd,
            Os::BUSY | Os::TXTBSY => Errno::Busy,
            Os::CONNABORTED => Errno::ConnectionAborted,
            Os::CONNREFUSED => Errno::ConnectionRefused,
            Os::CONNRESET => Errno::ConnectionReset,
            Os::EXIST => Errno::Exists,
            Os::FAULT => Errno::Fault,
            Os::FBIG => Errno::FileTooBig,
            Os::ILSEQ => Errno::IllegalSequence,
            Os::INTR => Errno::Interrupted,
            Os::INVAL => Errno::Invalid,
            Os::ISDIR => Errno::IsDirectory,
            Os::LOOP => Errno::Loop,
            Os::MFILE | Os::NFILE => Errno::TooManyFiles,
            Os::MLINK => Errno::TooManyLinks,
            Os::NAMETOOLONG => Errno::NameTooLong,
            Os::NOBUFS => Errno::NoBuffers,
            Os::NOENT => Errno::NoEntry,
            Os::NOMEM => Errno::NoMemory,
            Os::NOSPC | Os::DQUOT => Errno::NoSpace,
            Os::NOTCONN => Errno::NotConnected,
            Os::NOTDIR => Errno::NotDirectory,
            Os::NOTEMPTY => Errno::NotEmpty,
            Os::OPNOTSUPP | Os::NOSYS => Errno::NotSupported,
            Os::NXIO | Os::NODEV => Errno::NoDevice,
            Os::OVERFLOW => Errno::Overflow,
            Os::PERM => Errno::NotPermitted,
            Os::PIPE => Errno::Pipe,
            Os::ROFS => Errno::ReadOnly,
            Os::SPIPE => Errno::IllegalSeek,
            Os::TIMEDOUT => Errno::TimedOut,
            Os::XDEV => Errno::OtherDevice,
            _ => Errno::Io,
        }
    }
}

impl From<Os> for Fail {
    fn from(os: Os) -> Fail {
        Fail::Errno(os.into())
    }
}
