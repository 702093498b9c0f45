//! GRUB's `test`, also called `[`.

/// Whether an expression holds. `size` gives a file's size, none for a directory, nothing if there is neither.
pub(super) fn holds(words: &[&str], size: &dyn Fn(&str) -> Option<Option<u64>>) -> bool {
    // What binds least is split first.
    if let Some(at) = words.iter().position(|word| *word == "-o") {
        return split(words, at, |one, other| holds(one, size) || holds(other, size));
    }
    if let Some(at) = words.iter().position(|word| *word == "-a") {
        return split(words, at, |one, other| holds(one, size) && holds(other, size));
    }
    match words {
        [] => false,
        ["!", rest @ ..] => !holds(rest, size),
        ["(", rest @ .., ")"] => holds(rest, size),
        [word] => !word.is_empty(),
        ["-n", word] => !word.is_empty(),
        ["-z", word] => word.is_empty(),
        ["-e", path] => size(path).is_some(),
        ["-f", path] => matches!(size(path), Some(Some(_))),
        ["-d", path] => matches!(size(path), Some(None)),
        ["-s", path] => matches!(size(path), Some(Some(1..))),
        [one, operator, other] => compare(one, operator, other),
        _ => false,
    }
}

fn split(words: &[&str], at: usize, combine: impl Fn(&[&str], &[&str]) -> bool) -> bool {
    let (one, other) = words.split_at(at);
    combine(one, other.get(1..).unwrap_or_default())
}

fn compare(one: &str, operator: &str, other: &str) -> bool {
    let numbers = || Some((one.parse::<i64>().ok()?, other.parse::<i64>().ok()?));
    let order = |holds: fn(&i64, &i64) -> bool| numbers().is_some_and(|(one, other)| holds(&one, &other));
    match operator {
        "=" | "==" => one == other,
        "!=" => one != other,
        "<" => one < other,
        ">" => one > other,
        "-eq" => order(i64::eq),
        "-ne" => order(i64::ne),
        "-lt" => order(i64::lt),
        "-le" => order(i64::le),
        "-gt" => order(i64::gt),
        "-ge" => order(i64::ge),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions_of_real_configurations_hold_or_not() {
        let size = |path: &str| match path {
            "/file" => Some(Some(1024)),
            "/empty" => Some(Some(0)),
            "/dir" => Some(None),
            _ => None,
        };
        let words = |text: &str| holds(&text.split(' ').collect::<Vec<_>>(), &size);
        for text in [
            "xy = xy",
            "-s /file",
            "-e /dir",
            "-d /dir",
            "! -e /none",
            "a != b -a -f /empty",
            "a = b -o x",
            "2 -gt 1",
            "( a )",
        ] {
            assert!(words(text), "{text}");
        }
        for text in [
            "xy = x",
            "-s /empty",
            "-f /dir",
            "-f /none",
            "",
            "a = b -o -z x",
            "a -gt 1",
            "( )",
            "a b",
            "a ? b",
        ] {
            assert!(!words(text), "{text}");
        }
        assert!(!holds(&[], &size));
    }
}
