//! Who may import whom, and where `unsafe` may stand: the borders of the design, enforced on the sources.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// The modules of `proxy`, from above to below. A module may use what stands below it, never beside or above.
/// `filter` has its place before it exists.
const LAYERS: [&[&str]; 9] = [
    &["demo"],
    &["keeper", "worker"],
    &["listener"],
    &["session"],
    &["pool"],
    &["filter"],
    &["observe"],
    &["config"],
    &["version"],
];

/// Crates of ours, and which of ours each may depend on.
const CRATES: [(&str, &[&str]); 3] = [("proxy", &["handoff", "admin"]), ("handoff", &[]), ("admin", &[])];
/// The only files that may hold `unsafe`.
const UNSAFE: [&str; 2] = ["handoff/src/os.rs", "handoff/src/ledger/map.rs"];

#[test]
fn modules_of_proxy_import_downwards_only() {
    let source = root().join("proxy/src");
    let files = rust_files(&source);
    assert!(!files.is_empty(), "no sources in {}", source.display());
    let wrong: Vec<String> = files
        .iter()
        .filter_map(|file| Some((file, modules_of(file.strip_prefix(&source).unwrap())?)))
        .flat_map(|(file, modules)| {
            let text = fs::read_to_string(file).unwrap();
            let module = modules[0].clone();
            upward(&module, modules.len(), &text)
                .into_iter()
                .map(move |used| format!("{}: {module} uses {used}", file.display()))
        })
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn crates_depend_downwards_only() {
    for (name, allowed) in CRATES {
        let manifest = fs::read_to_string(root().join(name).join("Cargo.toml")).unwrap();
        let ours: BTreeSet<String> =
            dependencies(&manifest).into_iter().filter(|one| CRATES.iter().any(|(name, _)| name == one)).collect();
        let wrong: Vec<&String> = ours.iter().filter(|one| !allowed.contains(&one.as_str())).collect();
        assert!(wrong.is_empty(), "{name} depends on {wrong:?}");
    }
}

#[test]
fn unsafe_stands_in_two_files() {
    let wrong: Vec<PathBuf> = ["proxy", "handoff", "admin", "tests", "benches"]
        .iter()
        .flat_map(|part| rust_files(&root().join(part)))
        .filter(|file| !UNSAFE.iter().any(|allowed| file.ends_with(allowed)))
        .filter(|file| words(&code_of(&fs::read_to_string(file).unwrap())).any(|word| word == "unsafe"))
        .collect();
    assert!(wrong.is_empty(), "unsafe in {wrong:?}");
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn rust_files(directory: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    let paths = entries.map(|entry| entry.unwrap().path()).filter(|path| !path.ends_with("target"));
    let found = paths.flat_map(|path| if path.is_dir() { rust_files(&path) } else { vec![path] });
    found.filter(|path| path.extension().is_some_and(|end| end == "rs")).collect()
}

/// The module path of a file below `proxy/src`; `None` for `lib.rs`, which names them all.
fn modules_of(file: &Path) -> Option<Vec<String>> {
    let mut path: Vec<String> = file.with_extension("").iter().map(|part| part.to_string_lossy().into()).collect();
    path.pop_if(|last| last == "mod" || last == "lib");
    (!path.is_empty()).then_some(path)
}

/// The modules that `text`, a source so many levels deep in `module`, uses and may not.
fn upward(module: &str, depth: usize, text: &str) -> Vec<String> {
    let code = code_of(text);
    let own = layer(module);
    let mut used = crate_paths(&code);
    used.extend(super_paths(&code, depth).into_iter().filter(|used| layer(used).is_some()));
    let not_below = |used: &String| match (own, layer(used)) {
        // A module without a place is found out wherever it is used or uses.
        (Some(own), Some(other)) => other <= own,
        _ => true,
    };
    used.into_iter().filter(|used| used != module && not_below(used)).collect()
}

fn layer(module: &str) -> Option<usize> {
    LAYERS.iter().position(|layer| layer.contains(&module))
}

/// The first segments of all paths that start at the crate: `crate::a::b`, `use crate::{a::b, c}`.
fn crate_paths(code: &str) -> BTreeSet<String> {
    code.match_indices("crate::")
        .filter(|(at, _)| !code[..*at].ends_with(|before: char| before.is_alphanumeric() || "_$".contains(before)))
        .flat_map(|(at, start)| first_segments(&code[at + start.len()..]))
        .collect()
}

/// What is named after enough `super::` to be outside a module of this depth: `super::a` at 1, `super::super::a` at 2.
fn super_paths(code: &str, depth: usize) -> BTreeSet<String> {
    let chain = "super::".repeat(depth);
    let found = code.match_indices(&chain);
    found.flat_map(|(at, chain)| first_segments(code[at + chain.len()..].trim_start_matches("super::"))).collect()
}

fn first_segments(rest: &str) -> Vec<String> {
    match rest.trim_start().strip_prefix('{') {
        Some(group) => top_level(group).iter().filter_map(|item| identifier(item)).collect(),
        None => identifier(rest).into_iter().collect(),
    }
}

/// The items of a `use` group up to its closing bracket, split at the commas of its own level.
fn top_level(group: &str) -> Vec<String> {
    let mut items = vec![String::new()];
    let mut depth = 0_u32;
    for character in group.chars() {
        match character {
            '}' if depth == 0 => break,
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => items.push(String::new()),
            other if depth == 0 => items.last_mut().unwrap().push(other),
            _ => {}
        }
    }
    items
}

fn identifier(text: &str) -> Option<String> {
    words(text.trim_start()).next().map(Into::into).filter(|word: &String| text.trim_start().starts_with(word.as_str()))
}

fn words(code: &str) -> impl Iterator<Item = &str> {
    code.split(|character: char| !character.is_alphanumeric() && character != '_').filter(|word| !word.is_empty())
}

/// The names on the left in the tables of dependencies, of every kind and target.
fn dependencies(manifest: &str) -> Vec<String> {
    let mut inside = false;
    let mut names = Vec::new();
    for line in manifest.lines().map(str::trim) {
        if let Some(table) = line.strip_prefix('[') {
            let table = table.trim_end_matches(']');
            inside = table.ends_with("dependencies");
            // `[dependencies.name]`
            names.extend(table.rsplit_once("dependencies.").map(|(_, name)| name.to_owned()));
        } else if inside && !line.starts_with('#') {
            names.extend(line.split(['.', '=', ' ']).next().filter(|name| !name.is_empty()).map(str::to_owned));
        }
    }
    // A crate may be named as its package is.
    names.iter().map(|name| name.strip_prefix("proxyd-").unwrap_or(name).to_owned()).collect()
}

/// `text` without comments and without the contents of string literals.
fn code_of(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(character) = rest.chars().next() {
        let skipped = comment(rest).or_else(|| string(rest)).or_else(|| quoted_character(rest));
        match skipped {
            Some(_) => code.push(' '),
            None => code.push(character),
        }
        rest = &rest[skipped.unwrap_or_else(|| character.len_utf8())..];
    }
    code
}

/// Length of the comment that `text` begins with.
fn comment(text: &str) -> Option<usize> {
    if text.starts_with("//") {
        return Some(text.find('\n').unwrap_or(text.len()));
    }
    text.strip_prefix("/*")?;
    let (mut depth, mut at) = (0_usize, 0);
    while at < text.len() {
        match &text.as_bytes()[at..] {
            [b'/', b'*', ..] => (depth, at) = (depth + 1, at + 2),
            [b'*', b'/', ..] if depth == 1 => return Some(at + 2),
            [b'*', b'/', ..] => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
    }
    Some(text.len())
}

/// Length of the string literal, plain or raw, that `text` begins with.
fn string(text: &str) -> Option<usize> {
    if let Some(raw) = text.strip_prefix('r') {
        let marks = raw.len() - raw.trim_start_matches('#').len();
        if raw[marks..].starts_with('"') {
            let end = format!("\"{}", "#".repeat(marks));
            let body = 2 + marks;
            return Some(text[body..].find(&end).map_or(text.len(), |at| body + at + end.len()));
        }
    }
    text.strip_prefix('"')?;
    let bytes = text.as_bytes();
    let mut at = 1;
    while at < bytes.len() && bytes[at] != b'"' {
        at += if bytes[at] == b'\\' { 2 } else { 1 };
    }
    Some((at + 1).min(text.len()))
}

/// Length of the character literal that `text` begins with; lifetimes are not literals.
fn quoted_character(text: &str) -> Option<usize> {
    let inner = text.strip_prefix('\'')?;
    let first = inner.chars().next()?;
    if first == '\\' {
        return inner[2..].find('\'').map(|at| at + 4);
    }
    inner[first.len_utf8()..].starts_with('\'').then(|| first.len_utf8() + 2)
}

mod checker {
    use super::*;

    #[test]
    fn what_goes_up_or_sideways_is_found() {
        let cases = [
            ("session", "use crate::listener::Accept;", "listener"),
            ("pool", "fn f() { crate::session::start() }", "session"),
            ("keeper", "use crate::worker::Thread;", "worker"),
            ("worker", "pub(crate) use crate::{config::Config, keeper::Owner};", "keeper"),
            ("config", "use crate::{\n    pool::{Pool, pick},\n};", "pool"),
            ("config", "use crate::observe::names;", "observe"),
            ("filter", "use crate::pool;", "pool"),
            ("session", "use crate::util::x;", "util"),
            ("helpers", "use crate::config;", "config"),
        ];
        for (module, text, found) in cases {
            assert_eq!(upward(module, 1, text), [found], "{module}: {text}");
        }
    }

    #[test]
    fn what_goes_down_or_is_no_import_is_not() {
        let cases = [
            ("keeper", "use crate::{config::Config, observe, pool::Pool};"),
            ("listener", "use crate::session::Session; use crate::listener::accept;"),
            ("config", "// use crate::keeper\n/* crate::keeper /* nested */ crate::worker */"),
            (
                "config",
                "//! see [`crate::keeper`]\nconst A: &str = \"crate::keeper\"; const B: &str = r#\"\"crate::pool\"#;",
            ),
            ("config", "let a = '\"'; let b = \"crate::keeper\"; let c = '\\''; fn f<'a>(x: &'a str) {}"),
            ("config", "use other_crate::keeper;"),
        ];
        for (module, text) in cases {
            assert!(upward(module, 1, text).is_empty(), "{module}: {text}: {:?}", upward(module, 1, text));
        }
    }

    #[test]
    fn supers_lead_out_of_a_module() {
        assert_eq!(upward("session", 1, "use super::listener::Accept;"), ["listener"]);
        assert_eq!(upward("session", 2, "use super::super::{listener, pool};"), ["listener"]);
        assert!(upward("session", 2, "use super::listener; use super::super::pool;").is_empty());
        assert_eq!(modules_of(Path::new("session/mod.rs")).unwrap(), ["session"]);
        assert_eq!(modules_of(Path::new("session/relay.rs")).unwrap(), ["session", "relay"]);
        assert_eq!(modules_of(Path::new("lib.rs")), None);
    }

    #[test]
    fn a_quote_in_a_character_does_not_hide_what_follows() {
        assert_eq!(upward("config", 1, "let a = '\"'; use crate::keeper; let b = '\"';"), ["keeper"]);
    }

    #[test]
    fn dependencies_are_read_in_every_form() {
        let manifest = "[package]\nname = \"x\"\n[dependencies]\nproxy.workspace = true\na = \"1\"\n# b = 1\n\
            [target.'cfg(unix)'.dev-dependencies]\nadmin = { path = \"..\" }\n[build-dependencies.handoff]\npath = \"h\"\n[dependencies]\nproxyd-handoff.path = \"h\"\n";
        assert_eq!(dependencies(manifest), ["proxy", "a", "admin", "handoff", "handoff"]);
    }

    #[test]
    fn unsafe_is_a_word_of_the_code() {
        let has = |text: &str| words(&code_of(text)).any(|word| word == "unsafe");
        assert!(has("fn f() { unsafe { g() } }") && has("unsafe impl Send for X {}"));
        assert!(!has("#![forbid(unsafe_code)] // unsafe\nlet a = \"unsafe\";"));
    }
}
