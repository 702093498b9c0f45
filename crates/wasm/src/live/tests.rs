//! Programs cut between any two of their instructions, and let go on elsewhere: they end as they would have.
use super::*;
use std::sync::{Arc, Mutex};
use wasmtime::{Config, DebugEvent, DebugHandler, Engine, Store, StoreContextMut, Val};

/// What belongs to a run.
#[derive(Default)]
struct Host {
    running: Option<Running>,
    rebuilding: bool,
}

/// A moment of a program: its state, and its memories' bytes.
#[derive(Clone)]
struct Moment(State, Vec<u8>);

/// Steps, and takes each moment that is wanted.
#[derive(Clone)]
struct Stepper {
    module: Vec<u8>,
    every: usize,
    steps: Arc<Mutex<usize>>,
    taken: Arc<Mutex<Vec<Moment>>>,
}

impl DebugHandler for Stepper {
    type Data = Host;

    fn handle(
        &self,
        mut store: StoreContextMut<'_, Host>,
        event: DebugEvent<'_>,
    ) -> impl Future<Output = ()> + Send {
        if let (DebugEvent::Breakpoint, Some(running), false) =
            (event, store.data().running.clone(), store.data().rebuilding)
        {
            let mut steps = self.steps.lock().unwrap();
            if steps.is_multiple_of(self.every) {
                let shape = Shape::read(&self.module).unwrap();
                let state = capture(store.as_context_mut(), &running, &shape, &Stands::Between).unwrap();
                let mut bytes = Vec::new();
                for number in 0..state.memories.len() as u32 {
                    let memory = running.instance.debug_memory(&mut store, number).unwrap();
                    bytes.extend(memory.data(&store));
                }
                self.taken.lock().unwrap().push(Moment(state, bytes));
            }
            *steps += 1;
        }
        async {}
    }
}

use wasmtime::AsContextMut;

struct Trial {
    engine: Engine,
    module: Module,
    bytes: Vec<u8>,
}

/// How a run ended: what it gave or why it trapped, its memories, and its globals.
#[derive(Debug, PartialEq)]
struct End(Result<Vec<String>, String>, Vec<u8>, Vec<String>);

impl Trial {
    fn new(text: &str) -> Trial {
        let mut config = Config::new();
        config.guest_debug(true).wasm_function_references(true).wasm_gc(true).wasm_exceptions(true);
        let engine = Engine::new(&config).unwrap();
        let module = Module::new(&engine, text).unwrap();
        let bytes = module.debug_bytecode().unwrap().to_vec();
        Trial { engine, module, bytes }
    }

    /// Runs it from its start or from a moment, and gives its end with every `every`th moment on the way.
    fn run(&self, from: Option<&Moment>, every: Option<usize>) -> (End, Vec<Moment>) {
        let mut store = Store::new(&self.engine, Host::default());
        let taken = Arc::new(Mutex::new(Vec::new()));
        let stepper = Stepper {
            module: self.bytes.clone(),
            every: every.unwrap_or(usize::MAX),
            steps: Arc::default(),
            taken: taken.clone(),
        };
        store.set_debug_handler(stepper);
        let instance = now(wasmtime::Instance::new_async(&mut store, &self.module, &[])).unwrap();
        store.data_mut().running = Some(Running { instance, resumed: None });
        let function = match from {
            None => instance.get_func(&mut store, "run").unwrap(),
            Some(Moment(state, bytes)) => {
                let shape = Shape::read(&self.bytes).unwrap();
                let plan = plan(&shape, state).unwrap();
                let module = Module::new(&self.engine, &plan.written.module).unwrap();
                let read = &mut |offset: u64, data: &mut [u8]| {
                    data.copy_from_slice(&bytes[offset as usize..offset as usize + data.len()]);
                    Ok(())
                };
                put_back(store.as_context_mut(), instance, &shape, state, read).unwrap();
                let ready = |caller: &mut wasmtime::Caller<'_, Host>| {
                    caller.data_mut().rebuilding = false;
                    Ok(())
                };
                let (resumed, function) =
                    now(go_on(&mut store, instance, &shape, &module, plan, ready)).unwrap();
                *store.data_mut() = Host {
                    running: Some(Running { instance, resumed: Some(Arc::new(resumed)) }),
                    rebuilding: true,
                };
                function
            }
        };
        if every.is_some() {
            store.edit_breakpoints().unwrap().single_step(true).unwrap();
        }
        let mut results = vec![Val::I32(0); function.ty(&store).results().len()];
        let done = now(function.call_async(&mut store, &[], &mut results));
        let results = match done {
            Ok(()) => Ok(results.iter().map(|value| format!("{value:?}")).collect()),
            Err(error) => Err(error.root_cause().to_string()),
        };
        let shape = Shape::read(&self.bytes).unwrap();
        let (mut bytes, mut globals) = (Vec::new(), Vec::new());
        for number in 0..shape.memories.len() as u32 {
            bytes.extend(instance.debug_memory(&mut store, number).unwrap().data(&store));
        }
        for number in 0..shape.globals.len() as u32 {
            let global = instance.debug_global(&mut store, number).unwrap();
            let value = global.get(&mut store);
            globals
                .push(value.ref_().map_or_else(|| format!("{value:?}"), |value| value.is_null().to_string()));
        }
        let taken = std::mem::take(&mut *taken.lock().unwrap());
        (End(results, bytes, globals), taken)
    }
}

/// Cuts a program at each of its steps, lets each go on; then once more, cut again and again on the way.
fn cut_everywhere(text: &str) -> usize {
    let trial = Trial::new(text);
    let (end, moments) = trial.run(None, Some(1));
    assert!(end.0.as_ref().is_err() || !moments.is_empty());
    for (step, moment) in moments.iter().enumerate() {
        assert_eq!(trial.run(Some(moment), None).0, end, "cut at step {step}: {:?}", moment.0);
    }
    let mut moment = moments.first().cloned();
    let mut cuts = 0;
    while let Some(now) = &moment {
        let (ended, next) = trial.run(Some(now), Some(5));
        assert_eq!(ended, end, "after {cuts} cuts: {:?}", now.0);
        moment = next.get(1).cloned();
        cuts += 1;
    }
    assert!(cuts * 5 >= moments.len(), "each goes as far as five steps: {cuts} of {}", moments.len());
    moments.len()
}

#[test]
fn blocks_loops_and_branches_go_on_where_they_were() {
    cut_everywhere(
        r#"(module
        (func (export "run") (result i32) (local $i i32) (local $sum i32) (local $x i64)
            (local.set $i (i32.const 5))
            (i32.const 1000)
            (block $out (result i32)
                (i32.const 7)
                (loop $again (result i32)
                    (if (i32.and (local.get $i) (i32.const 1))
                        (then (local.set $sum (i32.add (local.get $sum) (local.get $i))))
                        (else (local.set $x (i64.add (local.get $x) (i64.const 3)))))
                    (block $two (block $one (block $zero
                        (br_table $zero $one $two (i32.rem_u (local.get $i) (i32.const 3))))
                        (local.set $sum (i32.mul (local.get $sum) (i32.const 3)))
                        (br $two))
                        (local.set $sum (i32.sub (local.get $sum) (i32.const 1))))
                    (local.set $i (i32.sub (local.get $i) (i32.const 1)))
                    (br_if $out (i32.add (local.get $sum) (i32.const 0)) (i32.eqz (local.get $i)))
                    (drop)
                    (br_if $again (local.get $i))
                    (i32.const 1))
                (i32.add))
            (i32.add (i32.wrap_i64 (local.get $x)))
            (i32.add)))"#,
    );
}

#[test]
fn parameters_and_many_results_stay_on_the_stack() {
    cut_everywhere(
        r#"(module
        (func $both (param i32 i32) (result i32 i32) (local.get 1) (local.get 0))
        (func (export "run") (result i32 i64 f32)
            (local $n i32)
            (local.set $n (i32.const 3))
            (i64.const 9)
            (i32.const 1) (i32.const 2)
            (loop $l (param i32 i32) (result i32 i32)
                (call $both)
                (block (param i32) (result i32) (i32.add (i32.const 3)))
                (local.set $n (i32.sub (local.get $n) (i32.const 1)))
                (br_if $l (local.get $n)))
            (if (param i32 i32) (result i32 f32) (i32.const 0)
                (then (drop) (f32.const 1.5))
                (else (i32.sub) (f32.const nan:0x200001)))
            (local.set $n (i32.const 0)) (drop) (local.set $n)
            (local.get $n) (i64.const 4) (f32.const -0.0)
            (br 0)))"#,
    );
}

#[test]
fn nested_loops_begin_anew_inside_and_outside() {
    cut_everywhere(
        r#"(module (memory 1) (global $g (mut i64) (i64.const 0))
        (func (export "run") (result i64) (local $i i32) (local $j i32)
            (loop $outer
                (local.set $j (i32.const 0))
                (loop $inner
                    (i32.store8 (i32.add (local.get $i) (local.get $j)) (i32.add (local.get $j) (i32.const 1)))
                    (global.set $g (i64.add (global.get $g) (i64.load8_u (local.get $i))))
                    (br_if $outer (i32.and
                        (i32.eq (local.get $j) (i32.const 1))
                        (i32.lt_u (local.tee $i (i32.add (local.get $i) (i32.const 1))) (i32.const 3))))
                    (br_if $inner (i32.lt_u
                        (local.tee $j (i32.add (local.get $j) (i32.const 1))) (i32.const 3)))))
            (global.get $g)))"#,
    );
}

#[test]
fn recursions_go_on_with_all_their_frames() {
    let steps = cut_everywhere(
        r#"(module
        (table $t 2 funcref) (elem (i32.const 0) $fib $id)
        (type $f (func (param i32) (result i32)))
        (func $id (type $f) (local.get 0))
        (func $fib (type $f)
            (if (result i32) (i32.lt_u (local.get 0) (i32.const 2))
                (then (call_indirect (type $f) (local.get 0) (i32.const 1)))
                (else (i32.add
                    (call_indirect (type $f) (i32.sub (local.get 0) (i32.const 1)) (i32.const 0))
                    (call $fib (i32.sub (local.get 0) (i32.const 2)))))))
        (func (export "run") (result i32) (i32.add (call $fib (i32.const 5)) (i32.const 100))))"#,
    );
    assert!(steps > 100, "{steps}");
}

#[test]
fn vectors_and_references_to_functions_are_kept() {
    cut_everywhere(
        r#"(module
        (type $f (func (param i32) (result i32)))
        (table $t 3 funcref) (elem declare func $one $two)
        (global $g (mut funcref) (ref.null func))
        (func $one (type $f) (i32.add (local.get 0) (i32.const 1)))
        (func $two (type $f) (i32.mul (local.get 0) (i32.const 2)))
        (func (export "run") (result i32) (local $v v128) (local $r funcref) (local $t (ref null $f)) (local $e externref)
            (local.set $v (v128.const i32x4 1 2 3 4))
            (local.set $r (ref.func $one))
            (local.set $t (ref.func $two))
            (table.set $t (i32.const 1) (local.get $r))
            (table.set $t (i32.const 2) (ref.func $two))
            (global.set $g (table.get $t (i32.const 2)))
            (drop (table.grow $t (global.get $g) (i32.const 2)))
            (local.set $v (i32x4.add (local.get $v) (v128.const i32x4 10 20 30 40)))
            (i32.add (ref.is_null (local.get $e)))
            (i32x4.extract_lane 2 (local.get $v))
            (i32.add (call_ref $f (i32.const 5) (local.get $t)))
            (i32.add (call_indirect (type $f) (i32.const 3) (i32.const 4)))
            (i32.add (call_indirect (type $f) (i32.const 3) (i32.const 1)))
            (i32.add)))"#
            .replace("(i32.add (ref.is_null (local.get $e)))", "(ref.is_null (local.get $e))")
            .as_str(),
    );
}

#[test]
fn segments_are_copied_from_and_memories_grow() {
    cut_everywhere(
        r#"(module (memory $a 1) (memory $b 0 4)
        (data $d "hello") (data (i32.const 3) "xyz")
        (table $t 1 4 funcref) (elem $e func $f) (func $f (result i32) (i32.const 5))
        (func (export "run") (result i32) (local $n i32)
            (local.set $n (i32.const 2))
            (loop $l
                (memory.init $a $d (local.get $n) (i32.const 0) (i32.const 5))
                (drop (memory.grow $b (i32.const 1)))
                (table.init $t $e (i32.const 0) (i32.const 0) (i32.const 1))
                (i32.store $b (i32.const 65532) (i32.load $a (local.get $n)))
                (memory.copy $a $a (i32.const 100) (i32.const 0) (i32.const 9))
                (br_if $l (local.tee $n (i32.sub (local.get $n) (i32.const 1)))))
            (i32.add (memory.size $b) (call_indirect (result i32) (i32.const 0)))))"#,
    );
}

#[test]
fn exceptions_are_caught_and_traps_come_as_they_would() {
    cut_everywhere(
        r#"(module (tag $e (param i32))
        (func $throws (param i32) (throw $e (i32.add (local.get 0) (i32.const 1))))
        (func (export "run") (result i32) (local $n i32)
            (loop $l (result i32)
                (block $caught (result i32)
                    (try_table (result i32) (catch $e $caught)
                        (loop $m (call $throws (local.get $n)) (br $m))
                        (i32.const 0)))
                (local.set $n (i32.add (i32.const 1)))
                (br_if $l (i32.const 9) (i32.lt_u (local.get $n) (i32.const 5)))
                (drop) (local.get $n))))"#
            .replace("(br_if $l (i32.const 9) (i32.lt_u", "(br_if $l (i32.lt_u")
            .replace("(drop) (local.get $n))))", "(local.get $n))))")
            .as_str(),
    );
    cut_everywhere(
        r#"(module (memory 1) (func $f (param i32) (i32.store (local.get 0) (i32.const 1)))
        (func (export "run") (call $f (i32.const 8)) (call $f (i32.const 65536))))"#,
    );
}

#[test]
fn what_cannot_be_saved_is_named() {
    let refusal = |text: &str| {
        let trial = Trial::new(text);
        let mut store = Store::new(&trial.engine, Host::default());
        let instance = now(wasmtime::Instance::new_async(&mut store, &trial.module, &[])).unwrap();
        let shape = Shape::read(&trial.bytes).unwrap();
        let running = Running { instance, resumed: None };
        capture(store.as_context_mut(), &running, &shape, &Stands::Between).unwrap_err().to_string()
    };
    assert!(refusal(r#"(module (memory 1) (data $d "x") (func (data.drop $d)))"#).contains("data.drop"));
    let object = "(type $s (struct (field (mut i32)))) (global $g (ref $s) (struct.new_default $s))";
    assert!(refusal(&format!("(module {object})")).contains("an object"));
    let outside = "(global externref (extern.convert_any (global.get $g)))";
    assert!(refusal(&format!("(module {object} {outside})")).contains("an object"));
    let segment = "(type $s (struct)) (elem (ref null $s) (struct.new $s))";
    assert!(refusal(&format!("(module {segment})")).contains("segments with objects"));
}

#[test]
fn code_that_would_be_copied_too_often_is_not() {
    const DEPTH: usize = 4000;
    let text = format!("(module (func {} nop {}))", "(loop ".repeat(DEPTH), ")".repeat(DEPTH));
    let bytes = wat::parse_str(text).unwrap();
    let shape = Shape::read(&bytes).unwrap();
    let mut operators = shape.body(0).unwrap().code.get_operators_reader().unwrap();
    let first = operators.original_position() as u32;
    while !matches!(operators.read().unwrap(), wasmparser::Operator::Nop) {}
    let innermost = operators.original_position() as u32;
    let plan = |pc| {
        let frame = saved::Frame { function: 0, pc, locals: Vec::new(), operands: Vec::new() };
        plan(&shape, &State { frames: vec![frame], ..State::default() }).map(drop)
    };
    plan(first).unwrap();
    assert!(plan(innermost).unwrap_err().to_string().contains("more places"));
}

/// Its frames say that each has called the next one, from as many places of a long function.
#[test]
fn a_long_function_is_not_gone_over_too_often() {
    const CALLS: u32 = 100_000;
    let text = format!("(module (func {}))", "(call 0)".repeat(CALLS as usize));
    let bytes = wat::parse_str(text).unwrap();
    let shape = Shape::read(&bytes).unwrap();
    let first = shape.body(0).unwrap().code.get_operators_reader().unwrap().original_position() as u32;
    let frame = |call: u32| saved::Frame {
        function: 0,
        pc: first + 2 * call,
        locals: Vec::new(),
        operands: Vec::new(),
    };
    let plan = |calls: std::ops::Range<u32>| {
        plan(&shape, &State { frames: calls.map(frame).collect(), ..State::default() }).map(drop)
    };
    plan(CALLS - 20..CALLS).unwrap();
    let begin = std::time::Instant::now();
    assert!(plan(CALLS - 20_000..CALLS).unwrap_err().to_string().contains("more places"));
    assert!(begin.elapsed().as_secs() < 60, "{:?}", begin.elapsed());
}

#[test]
fn what_is_not_of_the_module_is_refused() {
    let trial = Trial::new(r#"(module (memory 1) (func (export "run") (result i32) (i32.const 1)))"#);
    let (_, moments) = trial.run(None, Some(1));
    let shape = Shape::read(&trial.bytes).unwrap();
    let good = &moments[0].0;
    let refused = |change: &dyn Fn(&mut State)| {
        let mut state = good.clone();
        change(&mut state);
        assert!(plan(&shape, &state).is_err(), "{state:?}");
    };
    assert!(plan(&shape, good).is_ok());
    refused(&|state| state.frames.clear());
    refused(&|state| state.frames[0].pc += 1);
    refused(&|state| state.frames[0].function = 9);
    refused(&|state| state.frames[0].locals.push(saved::Value::Null));
    refused(&|state| state.frames.push(state.frames[0].clone()));
    for table in [0, 1, 2] {
        let mut elements = saved::Elements::default();
        (0..table).for_each(|number| elements.push(Some(number / 2)));
        assert_eq!(elements.len(), u64::from(table));
        assert_eq!(elements.iter().count() as u32, table);
    }
}

#[test]
fn what_an_if_takes_is_found_where_it_is() {
    cut_everywhere(
        r#"(module
        (func $twice (param i32) (result i32) (i32.mul (local.get 0) (i32.const 2)))
        (func $f (param $n i32) (result i32 i64) (local $x i64)
            (f64.const 9)
            (i64.const 5) (local.get $n)
            (if (param i64 i32) (result i32 i64) (i32.and (local.get $n) (i32.const 1))
                (then
                    (i32.add (i32.const 3))
                    (if (param i32) (result i32) (i32.gt_u (local.get $n) (i32.const 4))
                        (then (call $twice) (i32.add (call $twice (local.get $n))))
                        (else (i32.sub (i32.const 1))))
                    (local.set $n) (drop) (local.get $n) (i64.const 8)
                    (if (param i32 i64) (result i32 i64) (local.get $n)
                        (then (i64.add (i64.const 1)) (local.get $n) (drop)))
                    (loop (param i32 i64) (i64.add (i64.const 2)) (drop) (local.set $n))
                    (call $twice (local.get $n)) (i64.const 70)
                    (block (param i32 i64) (result i32 i64) (i64.mul (i64.const 3)))
                    (local.get $n)
                    (if (param i64) (result i64) (then (i64.sub (i64.const 1)) (i64.extend_i32_u (call $twice (i32.const 4))) (i64.add))))
                (else (call $twice) (local.set $n) (drop) (local.get $n) (i64.const -1)))
            (local.set $x) (local.set $n) (drop) (local.get $n) (local.get $x))
        (func (export "run") (result i32) (local $i i32) (local $sum i32)
            (local.set $i (i32.const 5))
            (loop $l
                (drop (call $f (local.get $i)))
                (local.set $sum (i32.add (local.get $sum)))
                (br_if $l (i32.gt_u (local.tee $i (i32.sub (local.get $i) (i32.const 1))) (i32.const 2))))
            (local.get $sum)))"#,
    );
}
