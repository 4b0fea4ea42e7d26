//! A command and the lines it answers, over a probation that may last, and over a keeper that replaces itself.

use hyper::Method;
use tokio::time::{Instant, sleep};

use super::answer::Answer;
use super::{BETWEEN, Client, ClientError};
use crate::command::{Command, Line, Reply};

/// The last line of an answer, if it is no failure.
enum Last {
    Reply(Reply),
    /// Another keeper has, or will have, the report of this upgrade.
    Reconnect(u64),
}

impl Client {
    /// Runs a command to its end. `on_step` sees each step as it begins. Giving up does not cancel the command.
    pub async fn command(&self, command: &Command, mut on_step: impl FnMut(&Line)) -> Result<Reply, ClientError> {
        match self.hear(command, &mut on_step).await? {
            Last::Reply(reply) => Ok(reply),
            Last::Reconnect(upgrade) => self.report(upgrade, on_step).await,
        }
    }

    async fn hear(&self, command: &Command, on_step: &mut impl FnMut(&Line)) -> Result<Last, ClientError> {
        let body = serde_json::to_vec(command).map_err(|e| self.nonsense(e))?;
        let mut answer = self.ask(Method::POST, "/v1/command", body).await?;
        loop {
            match self.next_line(&mut answer).await? {
                Some(Line::Done(reply)) => return Ok(Last::Reply(reply)),
                Some(Line::Failed(failure)) => return Err(ClientError::Refused(failure)),
                Some(Line::Reconnect { upgrade }) => return Ok(Last::Reconnect(upgrade)),
                Some(step @ Line::Step { .. }) => on_step(&step),
                None => return Err(self.lost("the answer ended without a result")),
            }
        }
    }

    /// Silence is bounded between two steps, but a probation is as long as it was asked to be: while the keeper says
    /// that one goes on, it is waited for.
    async fn next_line(&self, answer: &mut Answer) -> Result<Option<Line>, ClientError> {
        loop {
            match answer.line().await {
                Err(ClientError::Silent { .. }) if self.is_in_probation().await => {}
                heard => return heard,
            }
        }
    }

    async fn is_in_probation(&self) -> bool {
        let upgrade = self.status().await.ok().and_then(|status| status.upgrade);
        upgrade.is_some_and(|upgrade| upgrade.step == "probation")
    }

    /// The report of an upgrade whose keeper replaces itself: asked for until one answers.
    async fn report(&self, upgrade: u64, mut on_step: impl FnMut(&Line)) -> Result<Reply, ClientError> {
        let ask = Command::Report { id: Some(upgrade) };
        let mut since = Instant::now();
        loop {
            sleep(BETWEEN).await;
            let mut heard_step = |line: &Line| {
                since = Instant::now();
                on_step(line);
            };
            let how = match self.hear(&ask, &mut heard_step).await {
                Ok(Last::Reply(reply)) => return Ok(reply),
                Ok(Last::Reconnect(_)) => "it still says that it will".to_owned(),
                Err(error) if error.may_pass() => error.to_string(),
                Err(error) => return Err(error),
            };
            if since.elapsed() >= self.silence {
                return Err(ClientError::NotBack { path: self.path.clone(), upgrade, after: self.silence, how });
            }
        }
    }
}
