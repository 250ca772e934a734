//! The clock of this machine, by which everything is dated. It may be wrong, and may be put right at any moment: what
//! only measures how long something takes goes by [`tokio::time::Instant`].

use std::cell::RefCell;
use std::time::SystemTime;

use did_plc::Timestamp;

/// What says the time on this thread in place of the system.
type Driven = Box<dyn Fn() -> Timestamp>;

thread_local! {
    static DRIVEN: RefCell<Option<Driven>> = const { RefCell::new(None) };
}

/// What it says now.
pub fn now() -> Timestamp {
    DRIVEN.with_borrow(|driven| match driven {
        Some(says) => says(),
        None => Timestamp::from(SystemTime::now()),
    })
}

/// From now on `says` tells the time on this thread: for tests in which years pass in seconds. What it asks must not
/// ask this clock.
pub fn drive(says: impl Fn() -> Timestamp + 'static) {
    DRIVEN.set(Some(Box::new(says)));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_systems_unless_it_is_driven() {
        let before = Timestamp::from(SystemTime::now());
        assert!(before <= now());
        drive(|| Timestamp::from_millis(7));
        assert_eq!(now(), Timestamp::from_millis(7));
        std::thread::spawn(move || assert!(before <= now())).join().unwrap();
    }
}
