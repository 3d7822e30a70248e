//! What keeps the cluster whole while others use it.
//!
//! [`membership`] keeps the member list; [`joining`] brings a node back that lost its memory, [`recovery`] a cluster in
//! which too many did. [`reporting`] brings to nodes what they missed, [`comparing`] finds what nobody noted or asks for
//! any more, and [`forgetting`] removes what says nothing. [`copy`], [`rounds`] and [`settling`] are what they share; [`start`] starts
//! them all.

pub mod comparing;
pub mod copy;
pub mod forgetting;
pub mod joining;
pub mod membership;
pub mod recovery;
pub mod reporting;
pub mod rounds;
pub mod settling;

use std::sync::Arc;

use futures::FutureExt;

use crate::driver::Cluster;
use crate::register::Sweep;
use comparing::{Comparing, ComparingSettings};
use forgetting::Forgetting;
use membership::{Membership, MembershipSettings};
use reporting::Reporting;

/// The settings of all of upkeep.
#[derive(Clone, Copy, Debug, Default)]
pub struct UpkeepSettings {
    /// The member list, joins and recovery.
    pub membership: MembershipSettings,
    /// The comparison.
    pub comparing: ComparingSettings,
}

/// Who tidies registers that nobody asks for any more: one for each kind that has something to age.
pub type Sweeps = Vec<Arc<dyn Sweep>>;

/// Starts the tasks of upkeep. They end with the runtime.
pub fn start(cluster: &Arc<Cluster>, settings: UpkeepSettings, sweeps: Sweeps) {
    let UpkeepSettings { membership, comparing } = settings;
    let spawner = &cluster.runtime.spawner;
    spawner.spawn(Membership::new(cluster.clone(), membership).run().boxed());
    spawner.spawn(Reporting { cluster: cluster.clone(), out_after: membership.out_after }.run().boxed());
    spawner.spawn(Forgetting::new(cluster.clone()).run().boxed());
    spawner.spawn(Comparing { cluster: cluster.clone(), settings: comparing, sweeps }.run().boxed());
}
