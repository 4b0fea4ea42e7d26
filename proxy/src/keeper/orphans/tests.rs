use super::*;
use Polls::{NoMore, NotYet, Now};

fn verdict(noted: (Option<u32>, Option<u32>), found: &[(u32, Polls, bool)]) -> Verdict {
    let noted = Noted { serving: noted.0, standby: noted.1 };
    let candidate = |(generation, polls, finishing): &(u32, Polls, bool)| Candidate {
        generation: *generation,
        polls: *polls,
        finishing: *finishing,
    };
    Verdict::of(noted, &found.iter().map(candidate).collect::<Vec<_>>())
}

/// At whatever moment of an upgrade the keeper dies: one serves, those who took sessions drain, who never did is ended.
#[test]
fn an_upgrade_under_way_is_ended_before_commit_and_followed_after_it() {
    let none = || Verdict { serving: None, commit: false, stop: vec![], drain: vec![], kill: vec![] };
    for (moment, noted, found, wanted) in [
        ("quiet", (Some(1), None), vec![(1, Now, false)], Verdict { serving: Some(1), ..none() }),
        (
            "the new one was ready",
            (Some(1), None),
            vec![(1, Now, false), (2, NotYet, false)],
            Verdict { serving: Some(1), kill: vec![2], ..none() },
        ),
        (
            "both poll, not yet noted",
            (Some(1), None),
            vec![(1, Now, false), (2, Now, false)],
            Verdict { serving: Some(1), stop: vec![2], ..none() },
        ),
        (
            "both poll, noted",
            (Some(2), None),
            vec![(1, Now, false), (2, Now, false)],
            Verdict { serving: Some(2), stop: vec![1], ..none() },
        ),
        (
            "the old one has stopped",
            (Some(2), None),
            vec![(1, NoMore, false), (2, Now, false)],
            Verdict { serving: Some(2), drain: vec![1], ..none() },
        ),
        (
            "the old one drains",
            (Some(2), None),
            vec![(1, NoMore, true), (2, Now, false)],
            Verdict { serving: Some(2), ..none() },
        ),
        (
            "in probation",
            (Some(2), Some(1)),
            vec![(1, NoMore, false), (2, Now, false)],
            Verdict { serving: Some(1), commit: true, stop: vec![2], ..none() },
        ),
        (
            "in probation, and who stood by is gone",
            (Some(2), Some(1)),
            vec![(2, Now, false)],
            Verdict { serving: Some(2), ..none() },
        ),
        (
            "in probation, and the new one is gone",
            (Some(2), Some(1)),
            vec![(1, NoMore, false)],
            Verdict { serving: Some(1), commit: true, ..none() },
        ),
        (
            "the one who served is gone, one that stopped is left",
            (Some(2), None),
            vec![(1, NoMore, false)],
            Verdict { serving: Some(1), commit: true, ..none() },
        ),
        ("only one that drains is left", (Some(2), None), vec![(1, NoMore, true)], none()),
        ("a first start", (None, None), vec![(1, NotYet, false)], Verdict { kill: vec![1], ..none() }),
        (
            "a first start, polling, not noted",
            (None, None),
            vec![(1, Now, false)],
            Verdict { serving: Some(1), ..none() },
        ),
        ("a shutdown", (None, None), vec![(1, NoMore, true), (2, NoMore, true)], none()),
        ("nobody", (Some(9), None), vec![], none()),
    ] {
        assert_eq!(verdict(noted, &found), wanted, "{moment}");
    }
}
