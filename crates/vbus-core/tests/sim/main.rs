//! The protocol in a simulated world: a clock that is moved, links as bad as one likes, and applications that check
//! every byte. A run is told by its seed: `VBUS_SEED=7` repeats one, `VBUS_SOAK=1` runs some thousand of a scene.

mod app;
mod intruder;
mod link;
mod rogue;
mod scenes;
#[path = "../world/seeds.rs"]
mod seeds;
mod world;
