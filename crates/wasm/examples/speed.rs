//! What it costs that a program can be saved at any instruction: fib(35) as wasmtime alone runs it, with pauses, and with snapshots.
//!
//! ```text
//! cargo run --release -p viv-wasm --example speed
//! ```
use rustix::time::{ClockId, clock_gettime};
use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use wasmtime::{Config, Engine, Instance, Module, Store};

const FIB: &str = r#"(module (func $fib (export "fib") (param i32) (result i32)
    (if (result i32) (i32.lt_u (local.get 0) (i32.const 2))
        (then (local.get 0))
        (else (i32.add (call $fib (i32.sub (local.get 0) (i32.const 1)))
                       (call $fib (i32.sub (local.get 0) (i32.const 2))))))))"#;

fn ready<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(done) => done,
        Poll::Pending => panic!("nothing here waits"),
    }
}

/// Processor time of this thread: a busy machine takes none of it.
fn used() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

fn main() -> wasmtime::Result<()> {
    let mut alone = Duration::MAX;
    for (name, epochs, fuel, debug) in [
        ("wasmtime alone", false, false, false),
        ("with epochs", true, false, false),
        ("with fuel", true, true, false),
        ("with snapshots", true, false, true),
        ("with both", true, true, true),
    ] {
        let mut config = Config::new();
        config.epoch_interruption(epochs).consume_fuel(fuel).guest_debug(debug);
        let engine = Engine::new(&config)?;
        let mut store = Store::new(&engine, ());
        store.set_epoch_deadline(1);
        if fuel {
            store.set_fuel(u64::MAX)?;
        }
        let module = Module::new(&engine, FIB)?;
        let instance = ready(Instance::new_async(&mut store, &module, &[]))?;
        let fib = instance.get_typed_func::<i32, i32>(&mut store, "fib")?;
        let mut best = Duration::MAX;
        for _ in 0..15 {
            let begin = used();
            assert_eq!(ready(fib.call_async(&mut store, 35))?, 9_227_465);
            best = best.min(used() - begin);
        }
        alone = alone.min(best);
        println!(
            "{name:16} {:6.1} ms  {:.2}",
            best.as_secs_f64() * 1000.0,
            best.as_secs_f64() / alone.as_secs_f64()
        );
    }
    Ok(())
}
