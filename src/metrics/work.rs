//! What has been counted: calls, registers, locks, queues, and what heals.

use std::fmt;

use super::page::{Labels, Page, label, with};
use super::{Limits, Sources};
use crate::meter::calls::{Calls, MethodMeter};
use crate::meter::door::DoorMeter;
use crate::meter::{Fates, Kinds, LeaseMeter, LockMeter, Meter, QueueMeter, UpkeepMeter, Waits};

pub(super) fn write(page: &mut Page<'_>, sources: &Sources) -> fmt::Result {
    let meter = &sources.cluster.meter;
    write_calls(page, &sources.calls, sources.limits)?;
    write_door(page, &sources.calls.door)?;
    write_registers(page, meter)?;
    let live = [("lock", sources.locks.live_leases()), ("item", sources.queues.live_leases())];
    write_leases(page, meter, live)?;
    write_waits(page, meter, sources.locks.waiters(), sources.limits)?;
    write_locks(page, &meter.locks)?;
    write_items(page, &meter.queues)?;
    let written = [("item", sources.queues.writes_bytes()), ("key", sources.keys.writes_bytes())];
    write_room(page, written)?;
    write_upkeep(page, &meter.upkeep)
}

fn write_calls(page: &mut Page<'_>, calls: &Calls, limits: Limits) -> fmt::Result {
    let ended = calls.all().flat_map(|method| {
        method.codes().map(move |(code, count)| (with(&method_labels(method), "code", code), count))
    });
    page.counters("majorityd_grpc_calls", "Calls that have ended, streams too, by method and code.", ended)?;
    // How long a stream lasts says nothing, and a spread of what nobody calls would only make the page long.
    let timed = calls.all().filter(|method| !method.streams).filter_map(|method| {
        let shown = method.times.shown();
        (shown.count() > 0).then(|| (method_labels(method), shown))
    });
    let help = "How long calls took, from their arrival to the last byte of the answer, with what they waited for; without streams.";
    page.spreads("majorityd_grpc_call_seconds", help, timed)?;
    let open = calls.all().map(|method| (method_labels(method), method.in_flight.get() as f64));
    page.gauges("majorityd_grpc_calls_in_flight", "Calls and streams that have not ended.", open)?;
    let help = "Calls and streams that may be in flight; more are refused.";
    page.gauge("majorityd_grpc_calls_in_flight_max", help, limits.calls as f64)?;
    let connections = &calls.connections;
    page.gauge("majorityd_grpc_connections", "Connections that are open.", connections.open.get() as f64)?;
    let help = "Connections that may be open; more are refused.";
    page.gauge("majorityd_grpc_connections_max", help, limits.connections as f64)?;
    let closed =
        [("full", &connections.refused), ("silent", &connections.silent), ("http1", &connections.http1)];
    let closed = closed.map(|(reason, count)| (label("reason", reason), count.get()));
    let help = "Connections that were closed before they carried a call: there was no place (full), they did not say in time \
                what they speak (silent), or spoke HTTP/1 (http1).";
    page.counters("majorityd_grpc_connections_refused", help, closed)
}

fn write_door(page: &mut Page<'_>, door: &DoorMeter) -> fmt::Result {
    let shakes = &door.handshakes;
    let outcomes = [
        ("done", &shakes.done),
        ("failed", &shakes.failed),
        ("plaintext", &shakes.plaintext),
        ("timed_out", &shakes.timed_out),
        ("displaced", &shakes.displaced),
    ];
    let outcomes = outcomes.map(|(outcome, count)| (label("outcome", outcome), count.get()));
    page.counters("majorityd_tls_handshakes", "Handshakes of clients, by what they came to.", outcomes)?;
    let refusals = [
        ("no_credentials", &door.refusals.no_credentials),
        ("unknown_credentials", &door.refusals.unknown_credentials),
        ("certificate_lapsed", &door.refusals.certificate_lapsed),
        ("access_denied", &door.refusals.access_denied),
    ];
    let refusals = refusals.map(|(reason, count)| (label("reason", reason), count.get()));
    let help = "Calls that were not let in, and those that were ended because rights were taken away.";
    page.counters("majorityd_access_refusals", help, refusals)?;
    let expiry = door.expiry().map(|expiry| (Labels::new(), expiry as f64));
    let help = "When the first certificate of the chain that clients are shown expires, in Unix time.";
    page.gauges("majorityd_tls_certificate_expiry_seconds", help, expiry)?;
    let until = door.revoked_until().map(|until| (Labels::new(), until as f64));
    let help = "When the first list of revoked certificates should have been replaced, in Unix time.";
    page.gauges("majorityd_tls_revocation_list_expiry_seconds", help, until)?;
    let files = [("certificate", &door.certificate), ("access", &door.access)];
    let reloads = files.iter().flat_map(|(what, file)| {
        [("done", &file.reloaded), ("failed", &file.failed)]
            .map(|(outcome, count)| (with(&label("what", what), "outcome", outcome), count.get()))
    });
    let help = "Files that changed, by whether what they have now is in use.";
    page.counters("majorityd_reloads", help, reloads)?;
    let stale = files.map(|(what, file)| (label("what", what), f64::from(u8::from(file.stale()))));
    let help = "1 while the files can't be used as they are and what they had before is.";
    page.gauges("majorityd_reload_stale", help, stale)
}

fn method_labels(method: &MethodMeter) -> Labels {
    vec![("service", method.service.clone()), ("method", method.method.clone())]
}

fn write_registers(page: &mut Page<'_>, meter: &Meter) -> fmt::Result {
    let of = Kinds::all;
    let rounds = of(&meter.kinds).map(|(kind, of)| (label("kind", kind), of.rounds.shown()));
    let help = "How long rounds of changes took, from when one began until it was agreed on or given up.";
    page.spreads("majorityd_register_round_seconds", help, rounds)?;
    let changes = of(&meter.kinds).map(|(kind, of)| (label("kind", kind), of.changes.shown()));
    page.spreads("majorityd_register_round_changes", "Changes in each round.", changes)?;
    let warm = of(&meter.kinds).map(|(kind, of)| (label("kind", kind), of.warm.get()));
    let help = "Rounds that began with a promise that was there, and needed one round trip.";
    page.counters("majorityd_register_warm_rounds", help, warm)?;
    let reads = of(&meter.kinds).map(|(kind, of)| (label("kind", kind), of.reads.shown()));
    page.spreads("majorityd_register_read_seconds", "How long reads took that found a quorum.", reads)?;
    let fates = of(&meter.kinds).flat_map(|(kind, of)| fates(&label("kind", kind), &of.fates));
    page.counters("majorityd_register_changes", "Changes, by what they came to.", fates)?;
    let help = "Answers of nodes that had promised a higher ballot to somebody else: daemons compete.";
    page.counter("majorityd_register_conflicts", help, meter.conflicts.get())
}

fn fates(kind: &Labels, fates: &Fates) -> [(Labels, u64); 4] {
    let Fates { done, no_quorum, unknown, refused } = fates;
    [("done", done), ("no_quorum", no_quorum), ("unknown", unknown), ("refused", refused)]
        .map(|(outcome, count)| (with(kind, "outcome", outcome), count.get()))
}

fn write_leases(page: &mut Page<'_>, meter: &Meter, live: [(&str, usize); 2]) -> fmt::Result {
    let kinds = [("lock", &meter.locks.leases), ("item", &meter.queues.leases)];
    let of = |count: fn(&LeaseMeter) -> u64| kinds.map(|(kind, leases)| (label("kind", kind), count(leases)));
    let live = live.map(|(kind, count)| (label("kind", kind), count as f64));
    let help = "Leases that this daemon gave out or extended and that have neither run out nor been given back here.";
    page.gauges("majorityd_leases_live", help, live)?;
    page.counters("majorityd_leases_granted", "Leases given out.", of(|leases| leases.granted.get()))?;
    page.counters("majorityd_leases_extended", "Extensions of leases.", of(|leases| leases.extended.get()))?;
    let help = "Leases that were given back: released, acked, nacked.";
    page.counters("majorityd_leases_ended", help, of(|leases| leases.ended.get()))?;
    let lost = kinds.iter().flat_map(|(kind, leases)| {
        [("taken", &leases.taken), ("expired", &leases.expired)]
            .map(|(reason, count)| (with(&label("kind", kind), "reason", reason), count.get()))
    });
    let help = "Leases that turned out to be lost: taken (somebody else has had it, or it was given back before), or \
                expired in the hands of a stream that was to keep it.";
    page.counters("majorityd_leases_lost", help, lost)
}

fn write_waits(page: &mut Page<'_>, meter: &Meter, for_locks: usize, limits: Limits) -> fmt::Result {
    let waiters = [
        (label("kind", "lock"), for_locks as f64),
        (label("kind", "item"), meter.queues.waiters.get() as f64),
    ];
    page.gauges("majorityd_waiters", "Calls and streams that wait for a lock, or for items.", waiters)?;
    let help = "Callers that may wait for locks at this daemon; more are refused.";
    page.gauge("majorityd_lock_waiters_max", help, limits.lock_waiters as f64)?;
    let waits = [("lock", &meter.locks.waits), ("item", &meter.queues.waits)];
    let samples = waits.into_iter().flat_map(|(kind, waits)| {
        let Waits { served, in_vain, failed } = waits;
        [("served", served), ("in_vain", in_vain), ("failed", failed)]
            .map(|(outcome, times)| (with(&label("kind", kind), "outcome", outcome), times.shown()))
    });
    let help =
        "How long callers waited that were answered, by what came of it; in_vain is that their time was up.";
    page.spreads("majorityd_wait_seconds", help, samples)
}

fn write_locks(page: &mut Page<'_>, locks: &LockMeter) -> fmt::Result {
    let help = "Acquires that found the lock held by somebody else for as long as they wanted to wait.";
    page.counter("majorityd_lock_contentions", help, locks.contended.get())?;
    page.counter("majorityd_lock_forced_releases", "Leases of locks ended by force.", locks.forced.get())?;
    page.gauge("majorityd_lock_holds", "Streams that keep the lease of a lock.", locks.holds.get() as f64)?;
    let help = "Extensions that failed for a stream that keeps a lock, while its lease was still good.";
    page.counter("majorityd_lock_jeopardies", help, locks.jeopardies.get())
}

fn write_items(page: &mut Page<'_>, queues: &QueueMeter) -> fmt::Result {
    let QueueMeter { put, duplicates, acked, nacked, buried, returned, .. } = queues;
    let events = [
        ("put", put),
        ("duplicate", duplicates),
        ("acked", acked),
        ("nacked", nacked),
        ("buried", buried),
        ("returned", returned),
    ];
    let events = events.map(|(event, count)| (label("event", event), count.get()));
    let help = "What happened to items of queues through this daemon; returned is that nobody was there to take one.";
    page.counters("majorityd_queue_items", help, events)
}

fn write_room(page: &mut Page<'_>, written: [(&str, (usize, usize)); 2]) -> fmt::Result {
    let now = written.map(|(kind, (now, _))| (label("kind", kind), now as f64));
    let help = "Payloads and values that are being written, or wait for it.";
    page.gauges("majorityd_writes_bytes", help, now)?;
    let max = written.map(|(kind, (_, max))| (label("kind", kind), max as f64));
    page.gauges("majorityd_writes_max_bytes", "How much may be; more is refused.", max)
}

fn write_upkeep(page: &mut Page<'_>, upkeep: &UpkeepMeter) -> fmt::Result {
    let joins =
        [("begun", &upkeep.joins_begun), ("done", &upkeep.joins_done), ("failed", &upkeep.joins_failed)];
    let joins = joins.map(|(outcome, count)| (label("outcome", outcome), count.get()));
    let help = "Joins of nodes that this daemon ran; a failed one is started over.";
    page.counters("majorityd_joins", help, joins)?;
    let help = "Records copied to nodes that join, each as often as a source had it.";
    page.counter("majorityd_join_records", help, upkeep.join_records.get())?;
    let help = "Registers brought to nodes that were known to miss them.";
    page.counter("majorityd_repaired_registers", help, upkeep.repaired.get())?;
    page.counter("majorityd_compare_walks", "Walks through all that the nodes hold.", upkeep.walks.get())?;
    let help = "Registers that walks looked at, each once for each node that has it.";
    page.counter("majorityd_compared_registers", help, upkeep.compared.get())?;
    let help = "Registers that walks found to differ, and mended.";
    page.counter("majorityd_mended_registers", help, upkeep.mended.get())?;
    let help = "Registers in which walks found that something had aged, and tidied it.";
    page.counter("majorityd_swept_registers", help, upkeep.swept.get())?;
    let help = "Registers that said nothing and were forgotten.";
    page.counter("majorityd_forgotten_registers", help, upkeep.forgotten.get())
}
