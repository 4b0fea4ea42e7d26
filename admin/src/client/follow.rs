//! Events as they happen, over a keeper that goes away and comes back.

use std::ops::ControlFlow;
use std::time::Duration;

use hyper::Method;
use tokio::time::{Instant, sleep};

use super::{BETWEEN, Client, ClientError};
use crate::view::EventView;

impl Client {
    /// Gives every event after this number to `on_event`, until that breaks. A keeper that goes away is waited for, and
    /// asked for what came after the last event seen: none is given twice.
    ///
    /// # Errors
    /// No keeper was there, or none came back for as long as one may be silent.
    pub async fn follow(
        &self,
        since: u64,
        mut on_event: impl FnMut(&EventView) -> ControlFlow<()>,
    ) -> Result<(), ClientError> {
        let patient = self.clone().silence(self.silence.max(QUIET));
        let (mut last, mut heard) = (since, None);
        loop {
            let error = match patient.follow_one(&mut last, &mut heard, &mut on_event).await {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            let is_back_in_time = heard.is_some_and(|heard: Instant| heard.elapsed() < self.silence);
            if !error.may_pass() || !is_back_in_time {
                return Err(error);
            }
            sleep(BETWEEN).await;
        }
    }

    /// Follows one keeper; `Ok` if `on_event` had enough.
    async fn follow_one(
        &self,
        last: &mut u64,
        heard: &mut Option<Instant>,
        on_event: &mut impl FnMut(&EventView) -> ControlFlow<()>,
    ) -> Result<(), ClientError> {
        let uri = format!("/v1/events?since={last}&follow=1");
        let mut answer = self.ask(Method::GET, &uri, Vec::new()).await?;
        *heard = Some(Instant::now());
        loop {
            let event = answer.line::<EventView>().await;
            *heard = Some(Instant::now());
            let Some(event) = event? else { return Err(self.lost("the stream of events ended")) };
            *last = event.seq;
            if on_event(&event).is_break() {
                return Ok(());
            }
        }
    }
}

/// A keeper without news says so every 5 s; three of these missed, it is not there.
const QUIET: Duration = Duration::from_secs(15);
