//! `docs/configuration.md` and the keys of the code are the same.

use super::keys::EVERY_KEY;
use super::{good, parse};

const DOCS: &str = include_str!("../../../../docs/configuration.md");

/// The first column of each row of a section's table.
fn documented(section: &str) -> Vec<String> {
    let start = DOCS.split_once(&format!("\n## `[{section}]`\n")).unwrap().1;
    let body = start.split("\n## ").next().unwrap();
    let cells = body.lines().filter(|line| line.starts_with("| `")).map(|line| line.split('|').nth(1).unwrap());
    cells.flat_map(|cell| cell.split(',').map(|key| key.trim().trim_matches('`').to_owned())).collect()
}

#[test]
fn every_documented_key_is_read_and_every_read_key_is_documented() {
    let tables = ["runtime", "admin", "upgrade", "drain", "shutdown", "listeners.web", "pools.app"];
    for (index, table) in tables.iter().enumerate() {
        let section = table.replace("web", "NAME").replace("app", "NAME");
        let start = EVERY_KEY.split_once(&format!("[{table}]\n")).unwrap().1;
        let next = tables.get(index + 1).map_or(String::new(), |next| format!("[{next}]"));
        let body = if next.is_empty() { start } else { start.split(&next).next().unwrap() };
        let keys = body.lines().filter(|line| line.starts_with(char::is_alphabetic));
        let mut written: Vec<String> = keys.map(|line| line.split(' ').next().unwrap().to_owned()).collect();
        let mut documented = documented(&section);
        written.sort();
        documented.sort();
        assert_eq!(written, documented, "[{table}]");
    }
}

#[test]
fn the_example_is_accepted() {
    let example = DOCS.split("```toml\n").nth(1).unwrap().split("```").next().unwrap();
    assert_eq!(good(example).listeners["postgres"].pool, "pg");
    assert!(parse(example).unwrap().warnings.is_empty());
}

#[test]
fn keys_of_later_versions_are_listed() {
    let later = DOCS.split_once("\n## Not available in this version\n").unwrap().1;
    let rows = [("runtime", "runtime"), ("listeners.NAME", "listeners.web"), ("pools.NAME", "pools.app")];
    for (section, table) in rows {
        let row = later.lines().find(|line| line.starts_with(&format!("| `[{section}]`"))).unwrap();
        let keys = row.split('|').nth(2).unwrap().split(", and").next().unwrap();
        for key in keys.split(',').map(|key| key.trim().trim_matches('`')) {
            let mistakes = parse(&format!("[{table}]\n{key} = 1\n")).unwrap_err().to_string();
            let told = format!("`{table}.{key}` is not available in this version");
            assert!(mistakes.contains(&told), "{told}\n{mistakes}");
        }
    }
}
