//! The end of a turn: a session has moved as much as it may, and could go on.

use std::pin::pin;
use std::task::Context;

/// Wakes the task again once those that are ready have run and the kernel was asked for events. (A task that merely wakes itself
/// is run up to 61 times before the runtime asks: some 50 ms of bulk, in which nothing else is heard of.)
pub(super) fn give_way(cx: &mut Context<'_>) {
    let _ = pin!(tokio::task::yield_now()).poll(cx);
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::rc::Rc;
    use std::task::Poll;

    use tokio::io::AsyncReadExt;
    use tokio::net::UnixStream;

    use super::*;

    #[test]
    fn others_are_heard_of_after_each_turn() {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build_local(Default::default()).unwrap();
        let turns = Rc::new(Cell::new(0));
        runtime.block_on(async {
            for _ in 0..2 {
                let turns = Rc::clone(&turns);
                tokio::task::spawn_local(std::future::poll_fn(move |cx| {
                    turns.set(turns.get() + 1);
                    give_way(cx);
                    Poll::<()>::Pending
                }));
            }
            let quiet = async {
                let (mut mine, theirs) = UnixStream::pair().unwrap();
                for _ in 0..100 {
                    tokio::task::yield_now().await;
                    assert_eq!(theirs.try_write(b"?").unwrap(), 1);
                    mine.read_u8().await.unwrap();
                }
            };
            // A task of its own: what is blocked on has its turn at other times.
            tokio::task::spawn_local(quiet).await.unwrap();
        });
        assert!(turns.get() < 1_000, "{} turns of two for 100 answers", turns.get());
    }
}
