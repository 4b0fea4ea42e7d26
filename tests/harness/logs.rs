//! What proxyd logs, looked at line by line: `key=value` fields of the text format.

/// The lines with this message.
pub fn lines<'a>(log: &'a str, message: &'a str) -> impl Iterator<Item = &'a str> {
    log.lines().filter(move |line| line.contains(message))
}

/// The value of a field, without the quotes of a text.
pub fn field<'a>(line: &'a str, key: &str) -> Option<&'a str> {
    let value = line.split_ascii_whitespace().find_map(|word| word.strip_prefix(key)?.strip_prefix('='))?;
    Some(value.trim_matches('"'))
}
