//! `viv-wasm`: see the library.
fn main() {
    std::process::exit(viv_wasm::main().into());
}
