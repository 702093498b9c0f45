//! `viv-wasm`: the process of a WebAssembly program.
//!
//! ```text
//!   viv-wasm DIR       runs the program of the VM whose directory this is
//!   viv-wasm compile   compiles the module on standard input, to standard output
//! ```
//!
//! wasmtime is large and slow to build: neither `viv` nor the host service links this.
//! [`engine`] makes a program ready, [`code`] compiles it, [`instance`] runs it, and [`wasi`] is what it may ask of the host.
//! Components have [`component`] for the last two, and [`network`] if they are in one.
mod code;
mod component;
#[cfg(test)]
mod cuts;
mod engine;
mod instance;
mod invoke;
mod keeper;
mod limits;
mod live;
mod mapped;
mod network;
#[cfg(test)]
mod suites;
mod trap;
mod wasi;

#[cfg(any(test, feature = "trial"))]
pub mod trial;

use std::path::Path;

/// The main function. Gives the exit status.
pub fn main() -> u8 {
    viv_cell::sandbox::close_inherited();
    let mut args = std::env::args_os().skip(1);
    match (args.next(), args.next()) {
        (Some(mode), how) if mode == code::COMPILE => {
            code::compile_main(code::How::of(how.into_iter().chain(args)))
        }
        (Some(dir), None) => viv_process::run(Path::new(&dir), &engine::Wasm),
        _ => {
            eprintln!("viv-wasm: started by the host service for one program; use: viv run FILE.wasm");
            2
        }
    }
}
