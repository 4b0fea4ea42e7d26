//! The page at `/`: what an operator wants to see first, without anything from elsewhere. Refreshes itself.

use std::fmt::{self, Write};

use axum::response::{Html, IntoResponse, Response};
use hyper::header;

use crate::render::{seconds, whole_number};
use crate::view::{GenerationView, ListenerView, PoolView, Status};

pub(super) fn whole(status: &Status) -> Response {
    let text = format!("{HEAD}{}{TAIL}", Body(status));
    ([(header::CONTENT_SECURITY_POLICY, POLICY)], Html(text)).into_response()
}

/// What the page replaces itself with.
pub(super) fn body(status: &Status) -> Response {
    ([(header::CONTENT_SECURITY_POLICY, POLICY)], Html(Body(status).to_string())).into_response()
}

pub(super) fn script() -> Response {
    ([(header::CONTENT_TYPE, "text/javascript; charset=utf-8")], SCRIPT).into_response()
}

struct Body<'a>(&'a Status);

impl fmt::Display for Body<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Status { version, keeper, generations, listeners, pools, config, upgrade } = self.0;
        write!(f, "<h1>proxyd <small>{}</small> {}</h1>", Text(version), Badge(&keeper.state))?;
        write!(
            f,
            "<p>keeper pid {}, up {} · configuration version {} <code>{}</code></p>",
            keeper.pid,
            seconds(keeper.uptime_seconds),
            config.version,
            Text(&config.path)
        )?;
        if let Some(upgrade) = upgrade {
            let (id, from, to) = (upgrade.id, upgrade.from, upgrade.to);
            write!(f, "<p class=now>upgrade {id}: generation {from} → {to}, at {}</p>", Text(&upgrade.step))?;
        }
        table(f, "Generations", "id|state|version|pid|sessions|oldest|drain ends in", generations, generation_row)?;
        table(f, "Listeners", "name|bind|pool|sessions|", listeners, listener_row)?;
        pools.iter().try_for_each(|pool| pool_table(f, pool))
    }
}

fn generation_row(f: &mut dyn Write, row: &GenerationView) -> fmt::Result {
    let left = row.drain_seconds_left.map(seconds).unwrap_or_default();
    write!(
        f,
        "<td>{}<td>{}<td>{}<td>{}<td>{}<td>{}<td>{left}",
        row.id,
        Badge(&row.state),
        Text(&row.version),
        row.pid,
        whole_number(row.sessions),
        seconds(row.oldest_session_seconds)
    )
}

fn listener_row(f: &mut dyn Write, row: &ListenerView) -> fmt::Result {
    let (name, bind, pool) = (Text(&row.name), row.bind.join(", "), Text(&row.pool));
    let paused = if row.paused { "paused" } else { "" };
    write!(
        f,
        "<td>{name}<td><code>{}</code><td>{pool}<td>{}<td>{}",
        Text(&bind),
        whole_number(row.sessions),
        Badge(paused)
    )
}

fn pool_table(f: &mut fmt::Formatter<'_>, pool: &PoolView) -> fmt::Result {
    let title = format!("Pool {}, version {}", pool.name, pool.version);
    table(f, &title, "backend|address|weight|health|admin|sessions", &pool.backends, |f, row| {
        write!(
            f,
            "<td>{}<td><code>{}</code><td>{}<td>{}<td>{}<td>{}",
            Text(&row.name),
            Text(&row.address),
            row.weight,
            Badge(&row.health),
            Badge(&row.admin),
            whole_number(row.sessions)
        )
    })
}

fn table<T>(
    f: &mut fmt::Formatter<'_>,
    title: &str,
    heads: &str,
    rows: &[T],
    row: impl Fn(&mut dyn Write, &T) -> fmt::Result,
) -> fmt::Result {
    write!(f, "<h2>{}</h2><table><thead><tr>", Text(title))?;
    heads.split('|').try_for_each(|head| write!(f, "<th>{head}"))?;
    f.write_str("<tbody>")?;
    for one in rows {
        f.write_str("<tr>")?;
        row(f, one)?;
    }
    f.write_str("</table>")
}

/// A state word, coloured by the style sheet.
struct Badge<'a>(&'a str);

impl fmt::Display for Badge<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return Ok(());
        }
        write!(f, "<span class=\"badge {0}\">{0}</span>", Text(self.0))
    }
}

/// Text that stays text in an element and in a quoted attribute.
struct Text<'a>(&'a str);

impl fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.0.chars() {
            match c {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '"' => f.write_str("&quot;")?,
                '\'' => f.write_str("&#39;")?,
                c => f.write_char(c)?,
            }
        }
        Ok(())
    }
}

const HEAD: &str = r#"<!doctype html><html lang="en"><head><meta charset="utf-8"><title>proxyd</title>
<meta name="viewport" content="width=device-width"><meta name="color-scheme" content="light dark"><style>
:root{color-scheme:light dark;--line:light-dark(#d8dce2,#363c46);--dim:light-dark(#5c6672,#9aa4b0)}
body{font:15px/1.45 system-ui,sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem}
h1{font-size:1.4rem;margin:0}h1 small{font-weight:400;color:var(--dim)}h2{font-size:1rem;margin:1.6rem 0 .4rem}
p{color:var(--dim);margin:.3rem 0}table{border-collapse:collapse;width:100%}
th,td{text-align:left;padding:.3rem .8rem .3rem 0;border-bottom:1px solid var(--line);font-variant-numeric:tabular-nums}
th{font-weight:500;color:var(--dim);font-size:.85rem}code{font-size:.9em}
.badge{font-size:.8rem;padding:.1rem .5rem;border-radius:1rem;border:1px solid var(--line);font-weight:500}
.serving,.up,.enabled{background:light-dark(#dff3e4,#163a22)}.now{color:inherit;font-weight:600}
.standby,.draining,.starting,.paused,.shutting-down{background:light-dark(#fdf0d0,#45360f)}
.failed,.down,.disabled{background:light-dark(#fbdedd,#4a1b1a)}.lost main{opacity:.4}
</style><script src="/?part=script" defer></script>
<noscript><meta http-equiv="refresh" content="2"></noscript></head><body><main>"#;

const TAIL: &str = "</main></body></html>\n";

const SCRIPT: &str = "'use strict';
async function refresh() {
  try {
    const answer = await fetch('/?part=body', { cache: 'no-store', signal: AbortSignal.timeout(5000) });
    if (!answer.ok) throw new Error(answer.status);
    document.querySelector('main').innerHTML = await answer.text();
    document.body.classList.remove('lost');
  } catch { document.body.classList.add('lost'); }
  setTimeout(refresh, 2000);
}
setTimeout(refresh, 2000);
";

/// Nothing from elsewhere, no script but ours, no frame around us.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; script-src 'self'; connect-src 'self'; \
                      frame-ancestors 'none'; base-uri 'none'";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::{BackendView, KeeperView};

    #[test]
    fn the_page_shows_state_and_escapes_all_of_it() {
        let hostile = "<script>alert('1')</script>\"&";
        let status = Status {
            version: hostile.into(),
            keeper: KeeperView { pid: 7, uptime_seconds: 61.0, state: hostile.into() },
            generations: vec![GenerationView { version: hostile.into(), state: hostile.into(), ..Default::default() }],
            listeners: vec![ListenerView { name: hostile.into(), bind: vec![hostile.into()], ..Default::default() }],
            pools: vec![PoolView {
                name: hostile.into(),
                version: 4,
                backends: vec![BackendView { name: hostile.into(), health: hostile.into(), ..Default::default() }],
            }],
            ..Default::default()
        };
        let page = Body(&status).to_string();
        assert!(!page.contains("<script") && !page.contains("alert('"), "{page}");
        assert_eq!(page.matches("&lt;script&gt;alert(&#39;1&#39;)&lt;/script&gt;&quot;&amp;").count(), 12, "{page}");
        assert!(page.contains("keeper pid 7, up 1m 1s"), "{page}");
    }
}
