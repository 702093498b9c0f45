//! `If-Match` (RFC 9110, 13.1.1): a change only of what its sender has seen.
//!
//! What a request expects belongs to the request and not to what it asks for, and must be looked at in the VM's turn, so it goes
//! with the thread that does the request.
use std::cell::Cell;
use viv_model::{Fault, Kind};

thread_local! {
    static EXPECTED: Cell<Option<u64>> = const { Cell::new(None) };
}

/// What `If-Match` says: a revision in quotes; anything (`*`) is nothing.
pub(crate) fn of(value: Option<&str>) -> Result<Option<u64>, Fault> {
    let Some(value) = value.map(str::trim).filter(|value| *value != "*") else { return Ok(None) };
    let number = value
        .strip_prefix('"')
        .and_then(|value| value.strip_suffix('"'))
        .and_then(|value| value.parse().ok());
    number.map(Some).ok_or_else(|| {
        Fault::new(
            Kind::Usage,
            format!("If-Match: {value} is no revision of a VM"),
            "use the ETag that came with the VM, or its revision in quotes",
        )
    })
}

/// Does it with this expected of the VM that it changes first.
pub(crate) fn with<T>(expected: Option<u64>, act: impl FnOnce() -> T) -> T {
    struct Forget;
    impl Drop for Forget {
        fn drop(&mut self) {
            EXPECTED.set(None);
        }
    }
    let _forget = Forget;
    EXPECTED.set(expected);
    act()
}

/// Whether the VM that is about to be changed is as was expected: looked at once, for the change itself makes it another one.
pub(crate) fn check(name: &str, revision: u64) -> Result<(), Fault> {
    match EXPECTED.take() {
        Some(expected) if expected != revision => Err(Fault::new(
            Kind::Conflict,
            format!("VM {name:?} has changed: its revision is {revision}, and {expected} was expected"),
            "look at it again, and repeat the request if it still makes sense",
        )),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_of_what_was_seen() {
        assert_eq!(of(None), Ok(None));
        assert_eq!(of(Some("*")), Ok(None));
        assert_eq!(of(Some("\"17\"")), Ok(Some(17)));
        for wrong in ["17", "\"x\"", "W/\"17\"", "\"17\", \"18\"", "\""] {
            assert!(of(Some(wrong)).is_err(), "{wrong}");
        }
        with(Some(4), || {
            assert_eq!(check("web", 5).unwrap_err().kind, Kind::Conflict);
            assert_eq!(check("web", 5), Ok(()), "once");
        });
        with(Some(4), || assert_eq!(check("web", 4), Ok(())));
        with(Some(4), || ());
        assert_eq!(check("web", 5), Ok(()), "it does not outlive the request");
    }
}
