//! `proxyctl events`: what happened, line by line, and with `--follow` what happens.

use std::io;
use std::ops::ControlFlow;

use super::Trouble;
use super::args::EventsArgs;
use super::out::Out;
use crate::client::Client;
use crate::render;
use crate::view::EventView;

pub(super) async fn show(client: &Client, args: EventsArgs, out: &mut Out<'_>) -> Result<(), Trouble> {
    if !args.follow {
        let events = client.events(args.since).await?;
        return Ok(out.rows(&events, |_| events.iter().map(render::event).collect())?);
    }
    let mut written = Ok(());
    let followed = client.follow(args.since, |event| {
        written = one(event, out);
        if written.is_err() || out.is_unread() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    followed.await?;
    Ok(written?)
}

fn one(event: &EventView, out: &mut Out<'_>) -> io::Result<()> {
    out.show(event, |_| render::event(event))
}
