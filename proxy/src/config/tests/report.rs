//! How mistakes look.

use std::path::Path;

use super::super::{Mistake, Severity, parse_in, render};
use super::{REST, around, parse};

const BAD: &str = "\
[admin]
lisen = \"127.0.0.1:9901\"

[listeners.postgres]
bind = \"0.0.0.0:5432\"
pool = \"pg\"
idle_timeout = \"10\"

[listeners.copy]
bind = \"127.0.0.1:5432\"
pool = \"pg\"

[pools.pg]
backends = [\"db1:5432\"]

[pools.spare]
backends = [\"10.0.0.2:5432\"]
";

const REPORT: &str = r#"error: unknown key `lisen` in `admin`; did you mean `listen`?
 --> proxyd.toml:2:1
  |
2 | lisen = "127.0.0.1:9901"
  | ^^^^^

error: `listeners.postgres.idle_timeout` has no unit: "10"
 --> proxyd.toml:7:16
  |
7 | idle_timeout = "10"
  |                ^^^^ expected a whole number with a unit: ms, s, m, h or d, from "1ms" to "30d", or "off"

error: 127.0.0.1:5432 of listener `copy` and 0.0.0.0:5432 of listener `postgres` overlap: only one of them can listen
  --> proxyd.toml:10:8
   |
10 | bind = "127.0.0.1:5432"
   |        ^^^^^^^^^^^^^^^^
   |
  ::: proxyd.toml:5:8
   |
 5 | bind = "0.0.0.0:5432"
   |        -------------- the other one

error: `pools.pg.backends` = "db1:5432": `db1` is not an IP address; host names are not available in this version
  --> proxyd.toml:14:13
   |
14 | backends = ["db1:5432"]
   |             ^^^^^^^^^^ expected an IP address and a port
   |
   = help: write the IP address

warning: no listener uses the pool `spare`
  --> proxyd.toml:16:8
   |
16 | [pools.spare]
   |        ^^^^^
   |
   = help: it can still be given to one by `proxyctl pool swap`
"#;

#[test]
fn a_report_shows_each_line_with_the_place_underlined() {
    let report = parse(BAD).unwrap_err().render(false);
    assert_eq!(report, REPORT, "\n{report}");
}

#[test]
fn colour_changes_nothing_but_colour() {
    let mistakes = parse(BAD).unwrap_err();
    let colored = mistakes.render(true);
    assert!(colored.contains("\u{1b}["));
    let mut plain = String::new();
    let mut rest = colored.as_str();
    while let Some((before, after)) = rest.split_once('\u{1b}') {
        plain.push_str(before);
        rest = after.split_once('m').unwrap().1;
    }
    plain.push_str(rest);
    assert_eq!(plain, mistakes.render(false));
    assert_eq!(mistakes.to_string(), mistakes.render(false));
}

#[test]
fn warnings_are_given_with_a_good_configuration() {
    let parsed = parse(&format!("{REST}[pools.spare]\nbackends = [\"10.0.0.2:80\"]\n")).unwrap();
    let severities: Vec<Severity> = parsed.warnings.iter().map(Mistake::severity).collect();
    assert_eq!(severities, [Severity::Warning]);
    assert!(render(&parsed.warnings, false).starts_with("warning: no listener uses the pool `spare`\n"));
    assert_eq!(render(&[], false), "");
}

#[test]
fn what_was_written_does_not_reach_the_terminal_raw() {
    let text = format!("\"\\u001b[2J\" = 1\n{REST}");
    let mistakes = parse(&text).unwrap_err();
    let one = mistakes.iter().next().unwrap().to_string();
    for told in [mistakes.render(false), one] {
        assert!(told.contains("\\u{1b}[2J") && !told.contains('\u{1b}'), "{told}");
    }
}

#[test]
fn a_hundred_mistakes_are_shown_and_the_rest_counted() {
    let text: String = (0..150).map(|number| format!("key{number} = 1\n")).collect();
    let report = parse(&format!("{text}{REST}")).unwrap_err().render(false);
    assert_eq!(report.matches("error: unknown key").count(), 100);
    assert!(report.ends_with("\n... and 50 more\n"), "{report}");
}

#[test]
fn no_number_of_warnings_hides_an_error() {
    let pools: String = (0..1100).map(|number| format!("[pools.p{number}]\nbackends = [\"10.0.0.1:80\"]\n")).collect();
    let text = format!("{REST}{pools}").replace("\"127.0.0.1:80\"", "\"10.0.0.1:80\"");
    let mistakes = parse(&text).unwrap_err();
    assert_eq!(mistakes.iter().filter(|one| one.severity() == Severity::Error).count(), 1);
    assert_eq!(mistakes.iter().count(), 1001);
}

#[test]
fn a_mistake_in_one_line_has_file_position_and_what_is_expected() {
    let mistakes = parse_in(Path::new("/etc/p.toml"), b"[runtime]\nthreads = 0\n", &around()).unwrap_err();
    let lines: Vec<String> = mistakes.iter().map(ToString::to_string).collect();
    assert_eq!(
        lines,
        [
            "/etc/p.toml: there is no listener in this configuration (add `[listeners.NAME]` with `bind` and `pool`)",
            "/etc/p.toml:2:11: `runtime.threads` is 0, which is out of range (expected a whole number from 1 to 256)",
        ]
    );
}
