//! The functions of WASI preview 1 by their names, as a module imports them (`wasi_snapshot_preview1.witx`).
use super::errno::{Errno, Fail};
use super::guest::Guest;
use super::words::{self, Words};
use super::{Exit, Wasi, file, path, poll, socket};
use crate::instance::Host;
use crate::keeper::save_in_host;
use viv_process::Stopped;
use wasmtime::{AsContextMut, Caller, Error, Linker, Result};

/// The name under which a module imports them.
pub(crate) const MODULE: &str = "wasi_snapshot_preview1";

/// Most random bytes of one call.
const RANDOM_MAX: u32 = 1 << 20;

/// Does something for a program, with its memory.
fn act_for(
    caller: &mut Caller<'_, Host>,
    act: impl FnOnce(&mut Guest<'_>, &mut Wasi) -> std::result::Result<(), Fail>,
) -> std::result::Result<(), Fail> {
    match caller.data().wasi.memory {
        Some(memory) => {
            let (bytes, host) = memory.data_and_store_mut(&mut *caller);
            act(&mut Guest(bytes), &mut host.wasi)
        }
        // It asks before it is ready, or has no memory under that name.
        None => act(&mut Guest(&mut []), &mut caller.data_mut().wasi),
    }
}

/// Calls one of them that may wait. Whoever wants to save the program does that meanwhile, as one that is about to make this call with
/// these arguments.
fn waiting(
    caller: &mut Caller<'_, Host>,
    name: &'static str,
    arguments: &[u32],
    mut act: impl FnMut(&mut Guest<'_>, &mut Wasi) -> std::result::Result<(), Fail>,
) -> Result<u32> {
    loop {
        match act_for(caller, &mut act) {
            Err(Fail::Wanted) => save_in_host(caller.as_context_mut(), name, arguments),
            done => return told(done),
        }
    }
}

/// Calls one of them. Gives the program its `errno`.
fn call(
    caller: &mut Caller<'_, Host>,
    act: impl FnOnce(&mut Guest<'_>, &mut Wasi) -> std::result::Result<(), Fail>,
) -> Result<u32> {
    told(act_for(caller, act))
}

fn told(done: std::result::Result<(), Fail>) -> Result<u32> {
    match done {
        Ok(()) => Ok(0),
        Err(Fail::Errno(errno)) => Ok(errno as u32),
        Err(Fail::Stopped | Fail::Wanted) => Err(Error::new(Stopped)),
        Err(Fail::Exit(status)) => Err(Error::new(Exit(status))),
    }
}

type From<'a> = Caller<'a, Host>;

/// What is 16 bits in the interface comes in 32.
fn bits(value: u32) -> u16 {
    value as u16
}

/// Puts all of them in place.
pub(crate) fn link(linker: &mut Linker<Host>) -> Result<()> {
    words_and_clock(linker)?;
    descriptors(linker)?;
    paths(linker)?;
    others(linker)
}

fn words_and_clock(linker: &mut Linker<Host>) -> Result<()> {
    linker.func_wrap(MODULE, "args_sizes_get", |mut c: From<'_>, count: u32, bytes: u32| {
        call(&mut c, |guest, wasi| words::sizes(guest, wasi, Words::Args, count, bytes))
    })?;
    linker.func_wrap(MODULE, "args_get", |mut c: From<'_>, list: u32, bytes: u32| {
        call(&mut c, |guest, wasi| words::get(guest, wasi, Words::Args, list, bytes))
    })?;
    linker.func_wrap(MODULE, "environ_sizes_get", |mut c: From<'_>, count: u32, bytes: u32| {
        call(&mut c, |guest, wasi| words::sizes(guest, wasi, Words::Env, count, bytes))
    })?;
    linker.func_wrap(MODULE, "environ_get", |mut c: From<'_>, list: u32, bytes: u32| {
        call(&mut c, |guest, wasi| words::get(guest, wasi, Words::Env, list, bytes))
    })?;
    linker.func_wrap(MODULE, "clock_res_get", |mut c: From<'_>, id: u32, to: u32| {
        call(&mut c, |guest, wasi| Ok(guest.put_u64(to, wasi.clock.resolution(id)?)?))
    })?;
    linker.func_wrap(MODULE, "clock_time_get", |mut c: From<'_>, id: u32, _precision: u64, to: u32| {
        call(&mut c, |guest, wasi| Ok(guest.put_u64(to, wasi.clock.now(id)?)?))
    })?;
    linker.func_wrap(MODULE, "random_get", |mut c: From<'_>, to: u32, length: u32| {
        call(&mut c, |guest, wasi| {
            let bytes = guest.bytes_mut(to, length)?;
            bytes.chunks_mut(RANDOM_MAX as usize).try_for_each(|piece| wasi.random.fill(piece))?;
            Ok(())
        })
    })?;
    Ok(())
}

fn descriptors(linker: &mut Linker<Host>) -> Result<()> {
    linker.func_wrap(MODULE, "fd_read", |mut c: From<'_>, fd: u32, list: u32, count: u32, done: u32| {
        waiting(&mut c, "fd_read", &[fd, list, count, done], |guest, wasi| {
            file::read(guest, wasi, fd, list, count, done)
        })
    })?;
    linker.func_wrap(MODULE, "fd_write", |mut c: From<'_>, fd: u32, list: u32, count: u32, done: u32| {
        waiting(&mut c, "fd_write", &[fd, list, count, done], |guest, wasi| {
            file::write(guest, wasi, fd, list, count, done)
        })
    })?;
    linker.func_wrap(
        MODULE,
        "fd_pread",
        |mut c: From<'_>, fd: u32, list: u32, count: u32, offset: u64, done: u32| {
            call(&mut c, |guest, wasi| file::pread(guest, wasi, fd, (list, count), offset, done))
        },
    )?;
    linker.func_wrap(
        MODULE,
        "fd_pwrite",
        |mut c: From<'_>, fd: u32, list: u32, count: u32, offset: u64, done: u32| {
            call(&mut c, |guest, wasi| file::pwrite(guest, wasi, fd, (list, count), offset, done))
        },
    )?;
    linker.func_wrap(
        MODULE,
        "fd_seek",
        |mut c: From<'_>, fd: u32, offset: i64, whence: u32, done: u32| {
            call(&mut c, |guest, wasi| file::seek(guest, wasi, fd, offset, whence, done))
        },
    )?;
    linker.func_wrap(MODULE, "fd_tell", |mut c: From<'_>, fd: u32, done: u32| {
        call(&mut c, |guest, wasi| file::tell(guest, wasi, fd, done))
    })?;
    linker.func_wrap(
        MODULE,
        "fd_advise",
        |mut c: From<'_>, fd: u32, offset: u64, length: u64, advice: u32| {
            call(&mut c, |_, wasi| file::advise(wasi, fd, offset, length, advice))
        },
    )?;
    linker.func_wrap(MODULE, "fd_allocate", |mut c: From<'_>, fd: u32, offset: u64, length: u64| {
        call(&mut c, |_, wasi| file::allocate(wasi, fd, offset, length))
    })?;
    linker.func_wrap(MODULE, "fd_close", |mut c: From<'_>, fd: u32| {
        call(&mut c, |_, wasi| file::close(wasi, fd))
    })?;
    linker.func_wrap(MODULE, "fd_datasync", |mut c: From<'_>, fd: u32| {
        call(&mut c, |_, wasi| file::sync(wasi, fd, true))
    })?;
    linker.func_wrap(MODULE, "fd_sync", |mut c: From<'_>, fd: u32| {
        call(&mut c, |_, wasi| file::sync(wasi, fd, false))
    })?;
    linker.func_wrap(MODULE, "fd_fdstat_get", |mut c: From<'_>, fd: u32, to: u32| {
        call(&mut c, |guest, wasi| file::fdstat(guest, wasi, fd, to))
    })?;
    linker.func_wrap(MODULE, "fd_fdstat_set_flags", |mut c: From<'_>, fd: u32, flags: u32| {
        call(&mut c, |_, wasi| file::set_flags(wasi, fd, bits(flags)))
    })?;
    linker.func_wrap(
        MODULE,
        "fd_fdstat_set_rights",
        |mut c: From<'_>, fd: u32, base: u64, inheriting: u64| {
            call(&mut c, |_, wasi| file::set_rights(wasi, fd, base, inheriting))
        },
    )?;
    linker.func_wrap(MODULE, "fd_filestat_get", |mut c: From<'_>, fd: u32, to: u32| {
        call(&mut c, |guest, wasi| file::stat(guest, wasi, fd, to))
    })?;
    linker.func_wrap(MODULE, "fd_filestat_set_size", |mut c: From<'_>, fd: u32, size: u64| {
        call(&mut c, |_, wasi| file::set_size(wasi, fd, size))
    })?;
    linker.func_wrap(
        MODULE,
        "fd_filestat_set_times",
        |mut c: From<'_>, fd: u32, access: u64, change: u64, flags: u32| {
            call(&mut c, |_, wasi| file::set_times(wasi, fd, access, change, bits(flags)))
        },
    )?;
    linker.func_wrap(MODULE, "fd_prestat_get", |mut c: From<'_>, fd: u32, to: u32| {
        call(&mut c, |guest, wasi| file::prestat(guest, wasi, fd, to))
    })?;
    linker.func_wrap(MODULE, "fd_prestat_dir_name", |mut c: From<'_>, fd: u32, to: u32, max: u32| {
        call(&mut c, |guest, wasi| file::prestat_name(guest, wasi, fd, to, max))
    })?;
    linker.func_wrap(
        MODULE,
        "fd_readdir",
        |mut c: From<'_>, fd: u32, to: u32, max: u32, cookie: u64, done: u32| {
            call(&mut c, |guest, wasi| file::readdir(guest, wasi, fd, (to, max), cookie, done))
        },
    )?;
    linker.func_wrap(MODULE, "fd_renumber", |mut c: From<'_>, from: u32, to: u32| {
        call(&mut c, |_, wasi| Ok(wasi.table.renumber(from, to)?))
    })?;
    Ok(())
}

fn paths(linker: &mut Linker<Host>) -> Result<()> {
    linker.func_wrap(
        MODULE,
        "path_open",
        |mut c: From<'_>,
         fd: u32,
         lookup: u32,
         name: u32,
         length: u32,
         oflags: u32,
         base: u64,
         inheriting: u64,
         fdflags: u32,
         done: u32| {
            let (oflags, fdflags) = (bits(oflags), bits(fdflags));
            let ask = path::Open { lookup, oflags, base, inheriting, fdflags };
            call(&mut c, |guest, wasi| path::open(guest, wasi, fd, (name, length), &ask, done))
        },
    )?;
    linker.func_wrap(
        MODULE,
        "path_create_directory",
        |mut c: From<'_>, fd: u32, name: u32, length: u32| {
            call(&mut c, |guest, wasi| path::create_directory(guest, wasi, fd, name, length))
        },
    )?;
    linker.func_wrap(
        MODULE,
        "path_remove_directory",
        |mut c: From<'_>, fd: u32, name: u32, length: u32| {
            call(&mut c, |guest, wasi| path::remove_directory(guest, wasi, fd, name, length))
        },
    )?;
    linker.func_wrap(MODULE, "path_unlink_file", |mut c: From<'_>, fd: u32, name: u32, length: u32| {
        call(&mut c, |guest, wasi| path::unlink_file(guest, wasi, fd, name, length))
    })?;
    linker.func_wrap(
        MODULE,
        "path_filestat_get",
        |mut c: From<'_>, fd: u32, lookup: u32, name: u32, length: u32, to: u32| {
            call(&mut c, |guest, wasi| path::stat(guest, wasi, fd, lookup, (name, length), to))
        },
    )?;
    linker.func_wrap(
        MODULE,
        "path_filestat_set_times",
        |mut c: From<'_>,
         fd: u32,
         lookup: u32,
         name: u32,
         length: u32,
         access: u64,
         change: u64,
         flags: u32| {
            let times = (access, change, bits(flags));
            call(&mut c, |guest, wasi| path::set_times(guest, wasi, fd, lookup, (name, length), times))
        },
    )?;
    linker.func_wrap(
        MODULE,
        "path_link",
        |mut c: From<'_>, from: u32, lookup: u32, old: u32, old_len: u32, to: u32, new: u32, new_len: u32| {
            call(&mut c, |guest, wasi| {
                path::link(guest, wasi, (from, lookup, old, old_len), (to, new, new_len))
            })
        },
    )?;
    linker.func_wrap(
        MODULE,
        "path_rename",
        |mut c: From<'_>, from: u32, old: u32, old_len: u32, to: u32, new: u32, new_len: u32| {
            call(&mut c, |guest, wasi| path::rename(guest, wasi, (from, old, old_len), (to, new, new_len)))
        },
    )?;
    linker.func_wrap(
        MODULE,
        "path_symlink",
        |mut c: From<'_>, target: u32, target_len: u32, fd: u32, name: u32, length: u32| {
            call(&mut c, |guest, wasi| path::symlink(guest, wasi, (target, target_len), fd, (name, length)))
        },
    )?;
    linker.func_wrap(
        MODULE,
        "path_readlink",
        |mut c: From<'_>, fd: u32, name: u32, length: u32, to: u32, max: u32, done: u32| {
            call(&mut c, |guest, wasi| path::readlink(guest, wasi, fd, (name, length), (to, max), done))
        },
    )?;
    Ok(())
}

fn others(linker: &mut Linker<Host>) -> Result<()> {
    linker.func_wrap(
        MODULE,
        "poll_oneoff",
        |mut c: From<'_>, input: u32, output: u32, count: u32, done: u32| {
            waiting(&mut c, "poll_oneoff", &[input, output, count, done], |guest, wasi| {
                poll::oneoff(guest, wasi, (input, output, count), done)
            })
        },
    )?;
    linker.func_wrap(MODULE, "proc_exit", |mut c: From<'_>, status: u32| -> Result<()> {
        // As a process's parent sees it: its low 8 bits.
        call(&mut c, |_, _| Err(Fail::Exit(status as u8))).map(drop)
    })?;
    linker.func_wrap(MODULE, "proc_raise", |mut c: From<'_>, _signal: u32| {
        call(&mut c, |_, _| Err(Errno::NotSupported.into()))
    })?;
    linker.func_wrap(MODULE, "sched_yield", |mut c: From<'_>| {
        waiting(&mut c, "sched_yield", &[], |_, wasi| wasi.pass())
    })?;
    sockets(linker)
}

fn sockets(linker: &mut Linker<Host>) -> Result<()> {
    linker.func_wrap(MODULE, "sock_accept", |mut c: From<'_>, fd: u32, flags: u32, done: u32| {
        waiting(&mut c, "sock_accept", &[fd, flags, done], |guest, wasi| {
            socket::accept(guest, wasi, fd, bits(flags), done)
        })
    })?;
    linker.func_wrap(
        MODULE,
        "sock_recv",
        |mut c: From<'_>, fd: u32, list: u32, count: u32, flags: u32, done: u32, out: u32| {
            waiting(&mut c, "sock_recv", &[fd, list, count, flags, done, out], |guest, wasi| {
                socket::sock_recv(guest, wasi, fd, (list, count), flags, (done, out))
            })
        },
    )?;
    linker.func_wrap(
        MODULE,
        "sock_send",
        |mut c: From<'_>, fd: u32, list: u32, count: u32, flags: u32, done: u32| {
            waiting(&mut c, "sock_send", &[fd, list, count, flags, done], |guest, wasi| {
                socket::sock_send(guest, wasi, fd, (list, count), flags, done)
            })
        },
    )?;
    linker.func_wrap(MODULE, "sock_shutdown", |mut c: From<'_>, fd: u32, how: u32| {
        call(&mut c, |_, wasi| socket::sock_shutdown(wasi, fd, how))
    })?;
    Ok(())
}
