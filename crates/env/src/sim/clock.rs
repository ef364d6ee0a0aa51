//! Virtual time, as a node's clock.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use crate::random::Random;
use crate::sim::executor::{Action, EventKey, Handle};
use crate::time::{Clock, Instant, WallTime};

/// The wall time at virtual time zero, in milliseconds since 1970: 2025-01-01.
pub const WALL_START: WallTime = WallTime(1_735_689_600_000);

impl Clock for Handle {
    fn now(&self) -> Instant {
        self.shared.now()
    }

    fn wall(&self) -> WallTime {
        let state = self.shared.state.lock();
        let millis = WALL_START.0 + state.now.0 / 1_000_000;
        WallTime(millis.saturating_add_signed(state.nodes[self.node].wall_offset_ms))
    }

    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        let deadline = self.now().after(duration);
        Box::pin(Sleep { handle: self.clone(), deadline, event: None })
    }
}

struct Sleep {
    handle: Handle,
    deadline: Instant,
    event: Option<EventKey>,
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if let Some(event) = self.event.take() {
            self.handle.cancel(event);
        }
        if self.handle.is_alive() {
            if self.handle.now() >= self.deadline {
                return Poll::Ready(());
            }
            let wake = Action::Wake(cx.waker().clone());
            self.event = Some(self.handle.schedule(self.deadline, wake));
        }
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some(event) = self.event {
            self.handle.cancel(event);
        }
    }
}

impl Random for Handle {
    fn next_u64(&self) -> u64 {
        self.shared.state.lock().nodes[self.node].prng.next_u64()
    }
}
