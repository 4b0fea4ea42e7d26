//! The probe: the new generation connects once to each pool in use. What it cannot reach the old one is asked to reach: only
//! a difference between the two is the upgrade's fault.

use std::collections::BTreeSet;

use super::super::link::{Link, LinkError};
use crate::config::order::{Answer, Order, Unreachable};

/// What to ask for.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) pools: Vec<String>,
    /// Pools that the old generation has with the same backends.
    pub(super) comparable: BTreeSet<String>,
}

/// What came of it.
#[derive(Debug, Default)]
pub(in super::super) struct Probed {
    /// Why the new generation is not fit.
    pub(super) unfit: Option<String>,
    pub(super) notes: Vec<String>,
}

pub(super) async fn ask(new: &Link, standby: Option<Link>, asked: Asked) -> Probed {
    let unreachable = match probe(new, asked.pools).await {
        Ok(unreachable) => unreachable,
        Err(error @ LinkError::Refused { .. }) => {
            return Probed { unfit: None, notes: vec![format!("probe skipped: {error}")] };
        }
        // Its end, or its silence, is told elsewhere.
        Err(_) => return Probed::default(),
    };
    let again: Vec<String> =
        unreachable.iter().map(|it| it.pool.clone()).filter(|pool| asked.comparable.contains(pool)).collect();
    let agreed = match standby {
        Some(standby) if !again.is_empty() => agreeing(&standby, again).await,
        _ => BTreeSet::new(),
    };
    judge(unreachable, &agreed)
}

async fn probe(link: &Link, pools: Vec<String>) -> Result<Vec<Unreachable>, LinkError> {
    match link.order("the probe", &Order::Probe { pools }).await? {
        Answer::Probed { unreachable } => Ok(unreachable),
        _ => Ok(Vec::new()),
    }
}

/// Those of these pools that the old generation cannot reach either. One that cannot be asked agrees with nothing.
async fn agreeing(standby: &Link, pools: Vec<String>) -> BTreeSet<String> {
    let unreachable = probe(standby, pools).await.unwrap_or_default();
    unreachable.into_iter().map(|it| it.pool).collect()
}

fn judge(unreachable: Vec<Unreachable>, agreed: &BTreeSet<String>) -> Probed {
    let mut probed = Probed::default();
    for Unreachable { pool, why } in unreachable {
        if agreed.contains(&pool) {
            probed.notes.push(format!(
                "probe: pool {pool}: {why}; the old generation cannot reach it either, so the upgrade goes on"
            ));
        } else {
            probed.unfit.get_or_insert_with(|| format!("probe: pool {pool}: {why}"));
        }
    }
    probed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_old_generation_reaches_is_held_against_the_new_one() {
        let unreachable = |pool: &str| Unreachable { pool: pool.into(), why: "backend b (10.0.0.1:1): refused".into() };
        let agreed = BTreeSet::from(["down".to_owned()]);
        let probed = judge(vec![unreachable("down")], &agreed);
        assert!(probed.unfit.is_none() && probed.notes[0].contains("pool down"));
        let probed = judge(vec![unreachable("down"), unreachable("new"), unreachable("other")], &agreed);
        assert_eq!(probed.unfit.unwrap(), "probe: pool new: backend b (10.0.0.1:1): refused");
        assert!(judge(Vec::new(), &agreed).unfit.is_none());
    }
}
