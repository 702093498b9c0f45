//! What is written down of a program, but for its memories' bytes.
use serde::{Deserialize, Serialize};

/// A value. Floats by their bits: there are many that are no numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Value {
    #[serde(rename = "i")]
    I32(u32),
    #[serde(rename = "l")]
    I64(u64),
    #[serde(rename = "f")]
    F32(u32),
    #[serde(rename = "d")]
    F64(u64),
    /// The low half, then the high one.
    #[serde(rename = "v")]
    V128(u64, u64),
    /// A function, by its number in the module.
    #[serde(rename = "r")]
    Function(u32),
    /// Null, of any type.
    #[serde(rename = "n")]
    Null,
}

/// A function that has begun.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Frame {
    /// Which function of the module.
    #[serde(rename = "f")]
    pub(crate) function: u32,
    /// The instruction that comes next, or, of one that has called another, the call: its offset in the module.
    #[serde(rename = "p")]
    pub(crate) pc: u32,
    /// Parameters and other variables.
    #[serde(rename = "l")]
    pub(crate) locals: Vec<Value>,
    /// Operands, lowest first; the arguments of a call under way left out.
    #[serde(rename = "s")]
    pub(crate) operands: Vec<Value>,
}

/// A table's elements: functions by number. Those that are none, or the same as the one before, are counted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Elements(Vec<(u64, Option<u32>)>);

impl Elements {
    /// Adds one.
    pub(crate) fn push(&mut self, element: Option<u32>) {
        match self.0.last_mut() {
            Some((count, same)) if *same == element => *count += 1,
            _ => self.0.push((1, element)),
        }
    }

    /// How many there are.
    pub(crate) fn len(&self) -> u64 {
        self.0.iter().fold(0, |sum, (count, _)| sum.saturating_add(*count))
    }

    /// All, in order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Option<u32>> {
        let all = |(count, element): &(u64, Option<u32>)| {
            (0..*count).map({
                let element = *element;
                move |_| element
            })
        };
        self.0.iter().flat_map(all)
    }
}

/// A program between two instructions.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct State {
    /// Outermost first. The last one goes on with its next instruction; the others wait for what they have called.
    pub(crate) frames: Vec<Frame>,
    /// Those that can change, by their number.
    pub(crate) globals: Vec<(u32, Value)>,
    /// All tables.
    pub(crate) tables: Vec<Elements>,
    /// How many bytes each memory has.
    pub(crate) memories: Vec<u64>,
}
