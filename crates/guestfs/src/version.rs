//! Which of two versions is newer (UAPI.10 version format specification).
use std::cmp::Ordering;

/// Compares as the specification says: digits by their value, letters by their place, and signs between them so that
/// `1~rc` is before `1`, and `1` before `1.1`.
pub(crate) fn compare(a: &str, b: &str) -> Ordering {
    let plain = |c: &char| c.is_ascii_alphanumeric() || "~-^.".contains(*c);
    let (a, b): (Vec<char>, Vec<char>) =
        (a.chars().filter(plain).collect(), b.chars().filter(plain).collect());
    let (mut a, mut b) = (a.as_slice(), b.as_slice());
    loop {
        if let Some(order) = by_sign(&mut a, &mut b) {
            return order;
        }
        if a.is_empty() || b.is_empty() {
            return a.len().cmp(&b.len());
        }
        let numeric =
            a.first().is_some_and(char::is_ascii_digit) || b.first().is_some_and(char::is_ascii_digit);
        let same = |c: &char| c.is_ascii_digit() == numeric && c.is_ascii_alphanumeric();
        let (mut left, mut right) = (take(&mut a, same), take(&mut b, same));
        if numeric {
            left = trim_zeroes(left);
            right = trim_zeroes(right);
        }
        let order = if numeric {
            left.len().cmp(&right.len()).then_with(|| left.cmp(right))
        } else {
            left.cmp(right)
        };
        if order != Ordering::Equal {
            return order;
        }
    }
}

/// The signs in their order: an end is after `~` and before all others.
fn by_sign(a: &mut &[char], b: &mut &[char]) -> Option<Ordering> {
    for sign in ['~', ' ', '-', '^', '.'] {
        loop {
            let at = |text: &[char]| match sign {
                ' ' => text.is_empty(),
                sign => text.first() == Some(&sign),
            };
            match (at(a), at(b)) {
                (true, true) if sign == ' ' => return Some(Ordering::Equal),
                (true, true) => (*a, *b) = (a.get(1..).unwrap_or_default(), b.get(1..).unwrap_or_default()),
                (true, false) => return Some(Ordering::Less),
                (false, true) => return Some(Ordering::Greater),
                (false, false) => break,
            }
        }
    }
    None
}

fn take<'a>(text: &mut &'a [char], wanted: impl Fn(&char) -> bool) -> &'a [char] {
    let count = text.iter().take_while(|c| wanted(c)).count();
    let (taken, rest) = text.split_at(count);
    *text = rest;
    taken
}

fn trim_zeroes(digits: &[char]) -> &[char] {
    let zeroes = digits.iter().take_while(|digit| **digit == '0').count();
    digits.get(zeroes..).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_is_the_specifications() {
        // Its own examples, and names of kernels.
        for (older, newer) in [
            ("122.1", "123"),
            ("123~rc1-1", "123"),
            ("123", "123-a"),
            ("123-a", "123-a.1"),
            ("123-a.1", "123-a.2"),
            ("123-3", "123-3.1"),
            ("123-3.1", "123^patched-3"),
            ("6.1.0-9-amd64", "6.1.0-13-amd64"),
            ("vmlinuz-6.1.0-9-amd64", "vmlinuz-6.10.0-1-amd64"),
            ("", "1"),
        ] {
            assert_eq!(compare(older, newer), Ordering::Less, "{older} {newer}");
            assert_eq!(compare(newer, older), Ordering::Greater, "{older} {newer}");
        }
        assert_eq!(compare("00123", "123"), Ordering::Equal);
        assert_eq!(compare("1_0", "10"), Ordering::Equal);
    }
}
