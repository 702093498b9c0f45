//! Puts back into a store what a program was, and lets it go on.
use super::saved::{State, Value};
use super::shape::Shape;
use super::write::{OUTERMOST, Place, Taken, Written, write};
use super::{Resumed, Unsaved};
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use wasmtime::{AsContextMut, Caller, Extern, Func, Instance, Module, Ref, Store, StoreContextMut, Val};

/// The values that frames are rebuilt from, in the order in which they are asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Values {
    words: VecDeque<u64>,
    /// Functions by number, or none.
    functions: VecDeque<Option<u32>>,
}

/// A program that is to go on, with the module that is needed for it.
pub(crate) struct Plan {
    pub(crate) written: Written,
    pub(crate) values: Values,
}

/// What is needed to let frames go on: they are those of this module, or it says why not.
pub(crate) fn plan(shape: &Shape<'_>, state: &State) -> Result<Plan, Unsaved> {
    let (mut places, mut numbers, mut of_frames) = (Vec::new(), HashMap::new(), Vec::new());
    for (index, frame) in state.frames.iter().enumerate() {
        let waits = index + 1 < state.frames.len();
        let place = Place { function: frame.function, pc: frame.pc, waits };
        let number = *numbers.entry(place).or_insert_with(|| {
            places.push(place);
            places.len() - 1
        });
        of_frames.push(number);
    }
    if places.is_empty() {
        return Err(Unsaved::Damaged("it has no frames".into()));
    }
    let written = write(shape, &places)?;
    let mut values = Values::default();
    for (index, frame) in state.frames.iter().enumerate() {
        let wrong = || Unsaved::Damaged(format!("frame {index} has other values than its function"));
        let number = of_frames.get(index).copied().ok_or_else(wrong)?;
        let taken = written.taken.get(number).ok_or_else(wrong)?;
        if taken.len() != frame.locals.len() + frame.operands.len() {
            return Err(wrong());
        }
        for (kind, value) in taken.iter().zip(frame.locals.iter().chain(&frame.operands)) {
            match (kind, *value) {
                (Taken::I32, Value::I32(word)) | (Taken::F32, Value::F32(word)) => {
                    values.words.push_back(word.into());
                }
                (Taken::I64, Value::I64(word)) | (Taken::F64, Value::F64(word)) => {
                    values.words.push_back(word);
                }
                (Taken::V128, Value::V128(low, high)) => values.words.extend([low, high]),
                (Taken::Function, Value::Function(number)) => values.functions.push_back(Some(number)),
                (Taken::Function, Value::Null) => values.functions.push_back(None),
                (Taken::Null, Value::Null) => {}
                _ => return Err(wrong()),
            }
        }
        if let Some(inner) = of_frames.get(index + 1) {
            let of_inner = state.frames.get(index + 1).map(|frame| shape.function(frame.function));
            let results = of_inner.ok_or_else(wrong)??.results();
            // A function may make place for another one that gives less than it must.
            if written.awaited.get(number).is_none_or(|awaited| awaited != results) {
                return Err(Unsaved::Kind("made a tail call to a function of another type (tail-call)"));
            }
            values.words.push_back(*inner as u64);
        }
    }
    Ok(Plan { written, values })
}

/// The memories of a program, one after the other: reads what is at an offset, over zeroes.
pub(crate) type ReadMemory<'a> = &'a mut dyn FnMut(u64, &mut [u8]) -> Result<(), String>;

fn wrong(what: &str) -> impl Fn(wasmtime::Error) -> Unsaved {
    move |error| Unsaved::Damaged(format!("{what} cannot be put back: {error:#}"))
}

fn other() -> Unsaved {
    Unsaved::Damaged("it is of another module".into())
}

/// Gives a new instance the globals, tables and memories that were saved.
pub(crate) fn put_back<T>(
    mut store: StoreContextMut<'_, T>,
    instance: Instance,
    shape: &Shape<'_>,
    state: &State,
    read: ReadMemory<'_>,
) -> Result<(), Unsaved> {
    let changing = shape.globals.iter().filter(|ty| ty.mutable).count();
    if changing != state.globals.len()
        || shape.tables.len() != state.tables.len()
        || shape.memories.len() != state.memories.len()
    {
        return Err(other());
    }
    for (number, value) in &state.globals {
        let global = instance.debug_global(&mut store, *number).ok_or_else(other)?;
        let value = match value {
            Value::I32(value) => Val::I32(value.cast_signed()),
            Value::I64(value) => Val::I64(value.cast_signed()),
            Value::F32(bits) => Val::F32(*bits),
            Value::F64(bits) => Val::F64(*bits),
            Value::V128(low, high) => Val::V128((u128::from(*low) | u128::from(*high) << 64).into()),
            Value::Function(number) => Val::FuncRef(Some(function(&mut store, instance, *number)?)),
            Value::Null => match global.ty(&store).content().as_ref() {
                Some(ty) => Val::null_ref(ty.heap_type()),
                None => return Err(other()),
            },
        };
        global.set(&mut store, value).map_err(wrong("a global"))?;
    }
    for (number, elements) in (0..).zip(&state.tables) {
        let table = instance.debug_table(&mut store, number).ok_or_else(other)?;
        let ty = table.ty(&store).element().heap_type().clone();
        let had = table.size(&store);
        let more = elements.len().checked_sub(had).ok_or_else(other)?;
        let mut all = elements.iter().zip(0..);
        let of = |store: &mut StoreContextMut<'_, T>, element: Option<u32>| -> Result<Ref, Unsaved> {
            Ok(match element {
                Some(number) => Ref::Func(Some(function(store, instance, number)?)),
                None => Ref::null(&ty),
            })
        };
        if more > 0 {
            let first = elements.iter().nth(usize::try_from(had).map_err(|_| other())?).flatten();
            let first = of(&mut store, first)?;
            table.grow(&mut store, more, first).map_err(wrong("a table"))?;
        }
        // One after the other: most are as they are already.
        all.try_for_each(|(element, index)| {
            let element = of(&mut store, element)?;
            table.set(&mut store, index, element).map_err(wrong("a table"))
        })?;
    }
    let mut offset = 0u64;
    for (number, bytes) in (0..).zip(&state.memories) {
        let memory = instance.debug_memory(&mut store, number).ok_or_else(other)?;
        let page = memory.page_size(&store);
        let more = bytes.checked_sub(memory.data_size(&store) as u64).ok_or_else(other)?;
        if more > 0 {
            memory.grow(&mut store, more / page).map_err(wrong("a memory"))?;
        }
        let data = memory.data_mut(&mut store);
        if data.len() as u64 != *bytes {
            return Err(other());
        }
        read(offset, data).map_err(Unsaved::Damaged)?;
        offset = offset.checked_add(*bytes).ok_or_else(other)?;
    }
    Ok(())
}

fn function<T>(store: &mut StoreContextMut<'_, T>, instance: Instance, number: u32) -> Result<Func, Unsaved> {
    instance.debug_function(store, number).ok_or_else(other)
}

/// Makes the functions that go on, beside the program's instance. `ready` is called when all frames are there again. Gives
/// what belongs to the program from then on, and the function to call.
pub(crate) async fn go_on<T: Send + 'static>(
    store: &mut Store<T>,
    instance: Instance,
    shape: &Shape<'_>,
    module: &Module,
    plan: Plan,
    ready: impl Fn(&mut Caller<'_, T>) -> wasmtime::Result<()> + Send + Sync + 'static,
) -> Result<(Resumed, Func), Unsaved> {
    let Plan { written, values } = plan;
    let values = Arc::new(Mutex::new(values));
    let mut imports: Vec<Extern> = Vec::new();
    let short = || wasmtime::Error::msg("the frames of the snapshot are not whole");
    let shared = values.clone();
    imports.push(
        Func::wrap(&mut *store, move || -> wasmtime::Result<u64> {
            lock(&shared).words.pop_front().ok_or_else(short)
        })
        .into(),
    );
    imports.push(
        Func::wrap(&mut *store, move |mut caller: Caller<'_, T>| -> wasmtime::Result<Option<Func>> {
            let Some(number) = lock(&values).functions.pop_front().ok_or_else(short)? else {
                return Ok(None);
            };
            instance.debug_function(&mut caller, number).map(Some).ok_or_else(short)
        })
        .into(),
    );
    imports.push(Func::wrap(&mut *store, move |mut caller: Caller<'_, T>| ready(&mut caller)).into());
    for number in &written.functions {
        imports.push(function(&mut store.as_context_mut(), instance, *number)?.into());
    }
    for number in 0..shape.tables.len() as u32 {
        imports.push(instance.debug_table(&mut *store, number).ok_or_else(other)?.into());
    }
    for number in 0..shape.memories.len() as u32 {
        imports.push(instance.debug_memory(&mut *store, number).ok_or_else(other)?.into());
    }
    for number in 0..shape.globals.len() as u32 {
        imports.push(instance.debug_global(&mut *store, number).ok_or_else(other)?.into());
    }
    for number in 0..shape.tags.len() as u32 {
        imports.push(instance.debug_tag(&mut *store, number).ok_or_else(other)?.into());
    }
    let of_ours = Instance::new_async(&mut *store, module, &imports).await.map_err(wrong("its frames"))?;
    let outermost = of_ours.get_func(&mut *store, OUTERMOST).ok_or_else(other)?;
    let Written { functions, places, .. } = written;
    Ok((Resumed { module: module.clone(), instance: of_ours, functions, places }, outermost))
}

fn lock(values: &Mutex<Values>) -> std::sync::MutexGuard<'_, Values> {
    values.lock().unwrap_or_else(PoisonError::into_inner)
}
