//! Words of the command line that are more than text: durations, backends, paths.

use std::path::Path;
use std::time::Duration;

use crate::command::NewBackend;

/// `500ms`, `30s`, `5m`, `1h30m`, `2d`.
pub fn duration(text: &str) -> Result<Duration, String> {
    let expected = || "a duration such as 500ms, 30s, 5m, 1h30m or 2d".to_owned();
    if text.is_empty() {
        return Err(expected());
    }
    let mut rest = text;
    let mut sum = Duration::ZERO;
    while !rest.is_empty() {
        let digits =
            rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(|| format!("no unit; say {rest}s or {rest}m"))?;
        let letters = rest[digits..].find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len() - digits);
        let (number, unit) = (&rest[..digits], &rest[digits..digits + letters]);
        let number: u64 = number.parse().map_err(|_| expected())?;
        sum = scaled(number, unit).ok_or_else(expected)?.checked_add(sum).ok_or_else(expected)?;
        rest = &rest[digits + letters..];
    }
    // A century; beyond it nothing is meant, and deadlines would overflow.
    if sum > Duration::from_secs(3_200_000_000) { Err(expected()) } else { Ok(sum) }
}

fn scaled(number: u64, unit: &str) -> Option<Duration> {
    let seconds = match unit {
        "ms" => return Some(Duration::from_millis(number)),
        "s" => 1,
        "m" => 60,
        "h" => 3_600,
        "d" => 86_400,
        _ => return None,
    };
    number.checked_mul(seconds).map(Duration::from_secs)
}

/// As [`duration`], but not zero.
pub fn patience(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        Duration::ZERO => Err("must be longer than nothing".to_owned()),
        patience => Ok(patience),
    }
}

/// `[NAME=]IP:PORT[*WEIGHT]`.
pub fn backend(text: &str) -> Result<NewBackend, String> {
    let (name, rest) = match text.split_once('=') {
        Some((name, rest)) => (Some(name.to_owned()), rest),
        None => (None, text),
    };
    let (address, weight) = match rest.split_once('*') {
        Some((address, weight)) => (address, Some(weight.parse().map_err(|_| format!("weight `{weight}`: 1 to 256"))?)),
        None => (rest, None),
    };
    let backend = NewBackend { name, address: address.to_owned(), weight };
    backend.check().map_err(|failure| failure.message)?;
    Ok(backend)
}

/// The keeper has another working directory. Links are kept: the name is what a later upgrade uses.
pub fn absolute(path: &Path) -> Result<String, String> {
    let absolute = std::path::absolute(path).map_err(|e| format!("{}: {e}", path.display()))?;
    absolute.into_os_string().into_string().map_err(|path| format!("{}: not UTF-8", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (text, milliseconds) in
            [("0s", 0), ("500ms", 500), ("30s", 30_000), ("5m", 300_000), ("1h30m", 5_400_000), ("2d", 172_800_000)]
        {
            assert_eq!(duration(text), Ok(Duration::from_millis(milliseconds)), "{text}");
        }
        for text in [
            "",
            "10",
            "s",
            "-1s",
            "1.5s",
            "1y",
            "1 s",
            "1s5",
            "99999999999999999999s",
            "18446744073709551615d",
            "999999d",
        ] {
            assert!(duration(text).is_err(), "{text}");
        }
        assert!(patience("0ms").is_err());
    }

    #[test]
    fn backends() {
        let new = |name: Option<&str>, address: &str, weight| {
            Ok(NewBackend { name: name.map(str::to_owned), address: address.to_owned(), weight })
        };
        assert_eq!(backend("10.0.0.1:80"), new(None, "10.0.0.1:80", None));
        assert_eq!(backend("b=[::1]:80*5"), new(Some("b"), "[::1]:80", Some(5)));
        for text in ["", "=10.0.0.1:80", "10.0.0.1", "db:80", "10.0.0.1:80*0", "10.0.0.1:80*x", "10.0.0.1:80*257"] {
            assert!(backend(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a7_relative_paths_are_made_absolute_here() {
        let here = std::env::current_dir().unwrap();
        assert_eq!(absolute(Path::new("x/y")).unwrap(), here.join("x/y").to_str().unwrap());
        assert_eq!(absolute(Path::new("/x")).unwrap(), "/x");
    }
}
