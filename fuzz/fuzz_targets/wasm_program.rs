//! WebAssembly programs: bytes as a module, or calls of WASI with whatever arguments over whatever memory. They may trap and end,
//! and change their directory, and nothing else.
#![no_main]
use std::fmt::Write;
use std::fs;
use std::path::PathBuf;
use std::sync::OnceLock;

/// The functions of WASI preview 1, and their parameters: `i` for 32 bits, `l` for 64.
const FUNCTIONS: &[(&str, &str)] = &[
    ("args_get", "ii"),
    ("args_sizes_get", "ii"),
    ("environ_get", "ii"),
    ("environ_sizes_get", "ii"),
    ("clock_res_get", "ii"),
    ("clock_time_get", "ili"),
    ("random_get", "ii"),
    ("fd_read", "iiii"),
    ("fd_write", "iiii"),
    ("fd_pread", "iiili"),
    ("fd_pwrite", "iiili"),
    ("fd_seek", "ilii"),
    ("fd_tell", "ii"),
    ("fd_advise", "illi"),
    ("fd_allocate", "ill"),
    ("fd_close", "i"),
    ("fd_datasync", "i"),
    ("fd_sync", "i"),
    ("fd_fdstat_get", "ii"),
    ("fd_fdstat_set_flags", "ii"),
    ("fd_fdstat_set_rights", "ill"),
    ("fd_filestat_get", "ii"),
    ("fd_filestat_set_size", "il"),
    ("fd_filestat_set_times", "illi"),
    ("fd_prestat_get", "ii"),
    ("fd_prestat_dir_name", "iii"),
    ("fd_readdir", "iiili"),
    ("fd_renumber", "ii"),
    ("path_open", "iiiiillii"),
    ("path_create_directory", "iii"),
    ("path_remove_directory", "iii"),
    ("path_unlink_file", "iii"),
    ("path_filestat_get", "iiiii"),
    ("path_filestat_set_times", "iiiilli"),
    ("path_link", "iiiiiii"),
    ("path_rename", "iiiiii"),
    ("path_symlink", "iiiii"),
    ("path_readlink", "iiiiii"),
    ("poll_oneoff", "iiii"),
    ("proc_raise", "i"),
    ("sched_yield", ""),
    ("sock_accept", "iii"),
    ("sock_recv", "iiiiii"),
    ("sock_send", "iiiii"),
    ("sock_shutdown", "ii"),
];

/// A directory for the programs, beside a secret.
fn place() -> &'static PathBuf {
    static PLACE: OnceLock<PathBuf> = OnceLock::new();
    PLACE.get_or_init(|| {
        let place = std::env::temp_dir().join(format!("viv-fuzz-wasm-{}", std::process::id()));
        fs::create_dir_all(&place).expect("a place");
        fs::write(place.join("secret"), "do not tell").expect("a secret");
        place
    })
}

fn reset() {
    let inside = place().join("inside");
    let _ = fs::remove_dir_all(&inside);
    fs::create_dir_all(inside.join("a")).expect("a directory");
    fs::write(inside.join("b"), "content").expect("a file");
    std::os::unix::fs::symlink("../secret", inside.join("c")).expect("a link");
}

/// A program that makes the calls that the bytes say, over a memory with names in it.
fn calls(mut bytes: &[u8]) -> String {
    let mut text = String::from("(module ");
    for (name, parameters) in FUNCTIONS {
        let types: String =
            parameters.chars().map(|kind| if kind == 'l' { " i64" } else { " i32" }).collect();
        let _ = write!(
            text,
            "(import \"wasi_snapshot_preview1\" \"{name}\" (func ${name} (param{types}) (result i32)))"
        );
    }
    text += "(memory (export \"memory\") 1) (data (i32.const 0) \"a\\00b\\00c\\00../secret\\00/etc\\00a/../b\") \
             (data (i32.const 64) \"\\80\\00\\00\\00\\20\\00\\00\\00\\a0\\00\\00\\00\\08\\00\\00\\00\") (func (export \"_start\")";
    while let Some((first, rest)) = bytes.split_first() {
        bytes = rest;
        let Some((name, parameters)) = FUNCTIONS.get(usize::from(*first) % FUNCTIONS.len()) else { break };
        let _ = write!(text, "(drop (call ${name}");
        for kind in parameters.chars() {
            let Some((value, rest)) = bytes.split_first() else { break };
            bytes = rest;
            let value = match *value {
                small @ 0..=199 => i64::from(small),
                bit @ 200..=231 => 1 << (bit - 200),
                minus => -i64::from(255 - minus),
            };
            let _ = match kind {
                'l' => write!(text, "(i64.const {value})"),
                _ => write!(text, "(i32.const {})", value as i32),
            };
        }
        text += "))";
    }
    text + "))"
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Some((first, rest)) = data.split_first() else { return };
    reset();
    let inside = place().join("inside");
    let _ = match first & 1 {
        0 => viv_wasm::trial::run(rest, &inside, 100_000),
        _ => viv_wasm::trial::run(calls(rest).as_bytes(), &inside, 100_000),
    };
    assert_eq!(fs::read(place().join("secret")).expect("it is there"), b"do not tell");
    let names = fs::read_dir(place()).expect("it is there").count();
    assert_eq!(names, 2, "nothing was made outside");
});
