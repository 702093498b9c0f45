//! Takes out of a store what a program is at this moment.
use super::cut::{Call, Cut, call_at, call_shown_at};
use super::saved::{Elements, Frame, State, Value};
use super::shape::Shape;
use super::write::{OF_HOST, Place};
use super::{Resumed, Running, Unsaved};
use std::collections::HashMap;
use std::ffi::c_void;
use std::rc::Rc;
use wasmtime::{AsContextMut, FrameHandle, Module, Ref, StoreContextMut, Val};

/// Where a program is looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Stands {
    /// Between two instructions.
    Between,
    /// In a call of its host, which is to be made again: of the function that it imports under this number, with these.
    InHost(u32, Vec<Value>),
}

/// The functions of a program by where they are.
type Functions = HashMap<*mut c_void, u32>;

struct Capture<'s, 'a, T: 'static> {
    store: StoreContextMut<'s, T>,
    running: &'s Running,
    shape: &'s Shape<'a>,
    functions: Option<Functions>,
    /// Calls, by function and where they are shown.
    calls: HashMap<(u32, u32), Call>,
    /// What the program goes on in, if it came from a snapshot.
    resumed: Option<Shape<'s>>,
    /// At which places of a frame operands are shown: by whether it goes on for another one, and where it stands itself.
    shown: HashMap<(bool, Place), Rc<[u32]>>,
}

/// Where a frame stands, as its own code has it and as the program does.
#[derive(Clone, Copy)]
struct Where {
    own: Place,
    place: Place,
}

/// What the program is now; its memories are left where they are.
pub(crate) fn capture<T>(
    store: StoreContextMut<'_, T>,
    running: &Running,
    shape: &Shape<'_>,
    stands: &Stands,
) -> Result<State, Unsaved> {
    if shape.forgets_segments()? {
        return Err(Unsaved::Kind("segments that it can drop (data.drop, elem.drop: bulk memory)"));
    }
    if shape.makes_objects_in_segments()? {
        return Err(Unsaved::Kind("segments with objects in them (gc)"));
    }
    let code = running.resumed.as_ref().and_then(|resumed| resumed.module.debug_bytecode());
    let mut capture = Capture {
        store,
        running,
        shape,
        functions: None,
        calls: HashMap::new(),
        resumed: code.map(Shape::read).transpose()?,
        shown: HashMap::new(),
    };
    let frames = capture.frames(stands)?;
    Ok(State {
        frames,
        globals: capture.globals()?,
        tables: capture.tables()?,
        memories: capture.memories()?,
    })
}

fn odd() -> Unsaved {
    Unsaved::Damaged("a frame of it stands where none can".into())
}

fn gone() -> Unsaved {
    Unsaved::Damaged("what it is made of is not there".into())
}

impl<T> Capture<'_, '_, T> {
    fn value(&mut self, value: &Val) -> Result<Value, Unsaved> {
        Ok(match value {
            Val::I32(value) => Value::I32(value.cast_unsigned()),
            Val::I64(value) => Value::I64(value.cast_unsigned()),
            Val::F32(bits) => Value::F32(*bits),
            Val::F64(bits) => Value::F64(*bits),
            Val::V128(value) => {
                let value = value.as_u128();
                Value::V128(value as u64, (value >> 64) as u64)
            }
            Val::FuncRef(Some(function)) => {
                let raw = function.to_raw(self.store.as_context_mut());
                let function = self.functions()?.get(&raw).copied();
                Value::Function(function.ok_or(Unsaved::Kind("a reference to a function of its host"))?)
            }
            Val::FuncRef(None)
            | Val::ExternRef(None)
            | Val::AnyRef(None)
            | Val::ExnRef(None)
            | Val::ContRef(None) => Value::Null,
            Val::ExternRef(_) => return Err(Unsaved::Kind("an external reference (reference-types)")),
            Val::AnyRef(_) => return Err(Unsaved::Kind("an object (gc)")),
            Val::ExnRef(_) => return Err(Unsaved::Kind("an exception that is under way (exceptions)")),
            Val::ContRef(_) => return Err(Unsaved::Kind("a stack of its own (stack-switching)")),
        })
    }

    fn functions(&mut self) -> Result<&Functions, Unsaved> {
        if self.functions.is_none() {
            let mut all = Functions::new();
            for number in 0..self.shape.functions.len() as u32 {
                let function = self.running.instance.debug_function(self.store.as_context_mut(), number);
                all.insert(function.ok_or_else(gone)?.to_raw(self.store.as_context_mut()), number);
            }
            if let Some(resumed) = &self.running.resumed {
                for (import, number) in (OF_HOST..).zip(&resumed.functions) {
                    let function = resumed.instance.debug_function(self.store.as_context_mut(), import);
                    all.insert(function.ok_or_else(gone)?.to_raw(self.store.as_context_mut()), *number);
                }
            }
            self.functions = Some(all);
        }
        self.functions.as_ref().ok_or_else(gone)
    }

    /// The frames, outermost first.
    fn frames(&mut self, stands: &Stands) -> Result<Vec<Frame>, Unsaved> {
        let lost = |error: wasmtime::Error| Unsaved::Damaged(format!("its frames are not seen: {error:#}"));
        let mut handles: Vec<FrameHandle> = Vec::new();
        let mut next = self.store.debug_exit_frames().next();
        while let Some(handle) = next {
            next = handle.parent(self.store.as_context_mut()).map_err(lost)?;
            handles.push(handle);
        }
        let mut frames = Vec::with_capacity(handles.len() + 1);
        if let Stands::InHost(function, operands) = stands {
            let (function, operands) = (*function, operands.clone());
            frames.push(Frame { function, pc: 0, locals: Vec::new(), operands });
        }
        let waits_in_host = !frames.is_empty();
        for (depth, handle) in handles.iter().enumerate() {
            let waits = waits_in_host || depth > 0;
            frames.extend(self.frame(handle, waits, frames.last()).map_err(lost)??);
        }
        frames.reverse();
        Ok(frames)
    }

    /// What a frame is; nothing if it is only there to call the host again. One that `waits` has called another.
    fn frame(
        &mut self,
        handle: &FrameHandle,
        waits: bool,
        inner: Option<&Frame>,
    ) -> wasmtime::Result<Result<Option<Frame>, Unsaved>> {
        let Some((defined, pc)) = handle.wasm_function_index_and_pc(self.store.as_context_mut())? else {
            return Ok(Err(gone()));
        };
        let Some(module) = handle.module(self.store.as_context_mut())? else { return Ok(Err(gone())) };
        let goes_on = self.running.resumed.as_ref().filter(|it| Module::same(module, &it.module));
        let found = match goes_on {
            Some(resumed) => self.stands_for(resumed, defined.as_u32(), pc.raw(), waits),
            None => {
                let function = self.shape.imported.saturating_add(defined.as_u32());
                self.stands(function, pc.raw(), waits, inner).map(|place| Where { own: place, place })
            }
        };
        let found = match found {
            // One that is about to make the call is that call.
            Ok(found) if found.place.function < self.shape.imported && waits => return Ok(Ok(None)),
            Ok(found) => found,
            Err(why) => return Ok(Err(why)),
        };
        let place = found.place;
        let shown = match self.shown(goes_on.is_some(), found) {
            Ok(shown) => shown,
            Err(why) => return Ok(Err(why)),
        };
        let all = handle.num_stacks(self.store.as_context_mut())?;
        if shown.last().is_some_and(|last| *last >= all) {
            return Ok(Err(odd()));
        }
        let (mut locals, mut operands) = (Vec::new(), Vec::new());
        for number in 0..handle.num_locals(self.store.as_context_mut())? {
            locals.push(handle.local(self.store.as_context_mut(), number)?);
        }
        for number in shown.iter() {
            operands.push(handle.stack(self.store.as_context_mut(), *number)?);
        }
        let mut all = |values: Vec<Val>| -> Result<Vec<Value>, Unsaved> {
            values.iter().map(|value| self.value(value)).collect()
        };
        let (locals, operands) = (all(locals), all(operands));
        let frame = |locals, operands| Frame { function: place.function, pc: place.pc, locals, operands };
        Ok(locals.and_then(|locals| operands.map(|operands| Some(frame(locals, operands)))))
    }

    /// At which places the operands of a frame are shown; wasmtime shows arguments of its call besides.
    fn shown(&mut self, goes_on: bool, found: Where) -> Result<Rc<[u32]>, Unsaved> {
        if found.place.function < self.shape.imported {
            return Ok((0..self.shape.function(found.place.function)?.params().len() as u32).collect());
        }
        if let Some(shown) = self.shown.get(&(goes_on, found.own)) {
            return Ok(shown.clone());
        }
        let shape = if goes_on { self.resumed.as_ref().ok_or_else(gone)? } else { self.shape };
        let shown: Rc<[u32]> =
            Cut::find(shape, found.own.function, found.own.pc, found.own.waits)?.shown.into();
        self.shown.insert((goes_on, found.own), shown.clone());
        Ok(shown)
    }

    /// Where a frame of this function stands.
    fn stands(
        &mut self,
        function: u32,
        pc: u32,
        waits: bool,
        inner: Option<&Frame>,
    ) -> Result<Place, Unsaved> {
        if !waits {
            return Ok(Place { function, pc, waits });
        }
        let call = match self.calls.get(&(function, pc)) {
            Some(call) => *call,
            None => {
                let call = call_shown_at(self.shape, function, pc)?;
                self.calls.insert((function, pc), call);
                call
            }
        };
        // Of these, wasmtime keeps no record of its own, and shows the one before.
        if call.guarded && call.named != inner.map(|inner| inner.function) {
            return Err(Unsaved::Kind("an indirect or tail call inside a try_table (exceptions)"));
        }
        Ok(Place { function, pc: call.pc, waits })
    }

    /// The same of a function that goes on for another one.
    fn stands_for(&self, resumed: &Resumed, defined: u32, pc: u32, waits: bool) -> Result<Where, Unsaved> {
        let here = resumed.places.at(pc);
        let function = OF_HOST.saturating_add(resumed.functions.len() as u32).saturating_add(defined);
        let stands =
            |pc, place| Where { own: Place { function, pc, waits }, place: Place { waits, ..place } };
        if !waits {
            return here.map(|place| stands(pc, place)).ok_or(Unsaved::Soon);
        }
        let guarded = match here {
            Some(place) if place.waits || place.function < self.shape.imported => true,
            Some(place) => call_at(self.shape, place.function, place.pc)?.is_some_and(|call| call.guarded),
            None => false,
        };
        let call = if guarded { Some(pc) } else { resumed.places.before(pc) };
        let found = call.and_then(|call| resumed.places.at(call).map(|place| stands(call, place)));
        found.ok_or_else(odd)
    }

    /// Those that can change. What cannot is as the module makes it; an object there would be another one.
    fn globals(&mut self) -> Result<Vec<(u32, Value)>, Unsaved> {
        let shape = self.shape;
        let mut all = Vec::new();
        for (number, ty) in (0..).zip(&shape.globals) {
            let global = self.running.instance.debug_global(self.store.as_context_mut(), number);
            let value = global.ok_or_else(gone)?.get(self.store.as_context_mut());
            match value {
                Val::AnyRef(Some(any)) if !ty.mutable && any.is_i31(&self.store).is_ok_and(|is| is) => {}
                Val::AnyRef(Some(_)) | Val::ExternRef(Some(_)) => drop(self.value(&value)?),
                _ if ty.mutable => all.push((number, self.value(&value)?)),
                _ => {}
            }
        }
        Ok(all)
    }

    fn tables(&mut self) -> Result<Vec<Elements>, Unsaved> {
        let mut all = Vec::new();
        for number in 0..self.shape.tables.len() as u32 {
            let table = self.running.instance.debug_table(self.store.as_context_mut(), number);
            let table = table.ok_or_else(gone)?;
            let mut elements = Elements::default();
            for index in 0..table.size(self.store.as_context_mut()) {
                let element = table.get(self.store.as_context_mut(), index).ok_or_else(gone)?;
                elements.push(match element {
                    Ref::Func(None) | Ref::Extern(None) | Ref::Any(None) | Ref::Exn(None) => None,
                    Ref::Func(_) => match self.value(&Val::from(element))? {
                        Value::Function(function) => Some(function),
                        _ => None,
                    },
                    _ => return Err(Unsaved::Kind("a table of references that are no functions' (gc)")),
                });
            }
            all.push(elements);
        }
        Ok(all)
    }

    fn memories(&mut self) -> Result<Vec<u64>, Unsaved> {
        let each = |number| {
            let memory = self.running.instance.debug_memory(self.store.as_context_mut(), number);
            let memory = memory.ok_or(Unsaved::Kind("a memory that threads share (threads)"))?;
            Ok(memory.data_size(self.store.as_context_mut()) as u64)
        };
        (0..self.shape.memories.len() as u32).map(each).collect()
    }
}
