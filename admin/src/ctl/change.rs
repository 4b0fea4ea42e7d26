//! A command from its first step to its report, as an operator sees it.

use super::Trouble;
use super::out::Out;
use crate::client::{Client, ClientError};
use crate::command::{Command, FailureKind, Line, Reply, UpgradeReport, UpgradeResult};
use crate::render;

pub(super) async fn change(client: &Client, command: &Command, out: &mut Out<'_>) -> Result<u8, Trouble> {
    let mut steps = 0_usize;
    let reply = client.command(command, |line| {
        if let Line::Step { step, detail } = line {
            steps += 1;
            out.step(step, detail);
        }
    });
    match reply.await {
        Ok(reply) => answer(command, &reply, out),
        Err(ClientError::Refused(failure)) => {
            if let Some(report) = &failure.report {
                out.document(report)?;
            }
            Err(ClientError::Refused(failure).into())
        }
        Err(error @ ClientError::Silent { .. }) if steps > 0 => Err(goes_on(client, error).await),
        Err(error) => Err(error.into()),
    }
}

/// A step was seen, so the upgrade that the keeper has in hand is the one that was asked for.
async fn goes_on(client: &Client, error: ClientError) -> Trouble {
    let client = client.clone().silence(LAST_QUESTION);
    match client.status().await.map(|status| status.upgrade) {
        Ok(Some(upgrade)) => Trouble::UpgradeGoesOn { error, id: upgrade.id, step: upgrade.step },
        _ => error.into(),
    }
}

fn answer(command: &Command, reply: &Reply, out: &mut Out<'_>) -> Result<u8, Trouble> {
    match reply {
        Reply::Upgraded(report) => {
            out.show(report, |_| render::report(report))?;
            // Rolled back is what a rollback was asked for.
            let is_as_asked = matches!(command, Command::Rollback(_)) && report.result == UpgradeResult::RolledBack;
            return Ok(if is_as_asked { 0 } else { code_of(report) });
        }
        Reply::Started { id } => {
            out.show(&serde_json::json!({ "id": id }), |_| {
                format!("upgrade {id} has begun; see `proxyctl status`, and `proxyctl upgrade --last` for its report\n")
            })?;
        }
        Reply::Plan(plan) => out.show(plan, |_| render::plan(plan))?,
        Reply::Changed(changed) => out.show(changed, |_| render::changed(changed))?,
        Reply::Killed(killed) => out.show(killed, |style| render::killed(killed, style))?,
        Reply::ShuttingDown => out.show(&serde_json::json!({ "shutting_down": true }), |_| {
            "shutting down: sessions drain, then it ends\n".to_owned()
        })?,
    }
    Ok(0)
}

fn code_of(report: &UpgradeReport) -> u8 {
    match report.result {
        UpgradeResult::Committed => 0,
        UpgradeResult::RolledBack => FailureKind::RolledBack.exit_code(),
        UpgradeResult::Failed => FailureKind::Failed.exit_code(),
    }
}

/// For the id of an operation that went silent; a keeper that is well answers at once.
const LAST_QUESTION: std::time::Duration = std::time::Duration::from_secs(2);
