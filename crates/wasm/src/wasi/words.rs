//! The program's arguments and variables.
use super::Wasi;
use super::errno::{Errno, Fail};
use super::guest::Guest;

/// Which of the two.
#[derive(Clone, Copy)]
pub(crate) enum Words {
    Args,
    Env,
}

fn of(wasi: &Wasi, words: Words) -> &[String] {
    match words {
        Words::Args => &wasi.args,
        Words::Env => &wasi.env,
    }
}

fn sum(lengths: impl Iterator<Item = usize>) -> Result<u32, Errno> {
    u32::try_from(lengths.fold(0usize, |sum, length| sum.saturating_add(length))).map_err(|_| Errno::Overflow)
}

/// How many there are, and their bytes with a zero after each.
pub(crate) fn sizes(
    guest: &mut Guest<'_>,
    wasi: &Wasi,
    words: Words,
    count: u32,
    bytes: u32,
) -> Result<(), Fail> {
    let words = of(wasi, words);
    guest.put_u32(count, sum(words.iter().map(|_| 1))?)?;
    guest.put_u32(bytes, sum(words.iter().map(|word| word.len() + 1))?)?;
    Ok(())
}

/// Their addresses to `list`, and their bytes to `bytes`.
pub(crate) fn get(
    guest: &mut Guest<'_>,
    wasi: &Wasi,
    words: Words,
    list: u32,
    bytes: u32,
) -> Result<(), Fail> {
    let (mut list, mut place) = (list, bytes);
    for word in of(wasi, words) {
        guest.put_u32(list, place)?;
        guest.put(place, word.as_bytes())?;
        let length = sum([word.len()].into_iter())?;
        let end = place.checked_add(length).ok_or(Errno::Fault)?;
        guest.put(end, &[0])?;
        place = end.checked_add(1).ok_or(Errno::Fault)?;
        list = list.checked_add(4).ok_or(Errno::Fault)?;
    }
    Ok(())
}
