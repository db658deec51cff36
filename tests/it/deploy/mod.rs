//! What `deploy/` ships, looked at by validators, run where it can be, and each validator shown to find seeded faults.

mod backup;
mod cloudrun;
mod compose;
mod drills;
mod ecs;
mod image;
mod outages;
mod protect;
mod scripts;
mod shipped;
mod systemd;
