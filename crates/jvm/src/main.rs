//! `viv-jvm DIR`: the process of a Java program, which HotSpot of this host runs as its child.
//!
//! [`hotspot`] finds the machine, [`viv_java`] looks at what it is to run, [`child`] runs it in [`own_network`], to which
//! [`forward`] leads.
mod child;
mod forward;
mod hotspot;
mod own_network;
mod together;

use std::path::Path;

fn main() {
    viv_cell::sandbox::close_inherited();
    let mut args = std::env::args_os().skip(1);
    let status = match (args.next(), args.next()) {
        (Some(dir), None) => viv_process::run(Path::new(&dir), &child::Jvm),
        _ => {
            eprintln!("viv-jvm: started by the host service for one program; use: viv run FILE.jar");
            2
        }
    };
    std::process::exit(status.into());
}
