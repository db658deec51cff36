//! Every case of the conformance suite on every backend, each a test of its own. A backend more is one line below and
//! a constructor in `src/backends/mod.rs`.

mod admin;
mod cancel;
mod claims;
mod end;
mod enqueue;
mod everywhere;
mod lane;
mod lease;
mod ledger;
mod moving;
mod redrive;
mod retention;
mod settle;

use std::sync::Arc;

use promptq_tests::backends::Fixture;
use promptq_tests::s3::S3;

macro_rules! on {
    ($backend:ident $($area:ident $case:ident)*) => {
        mod $backend {
            use promptq_tests::backends::Fixture;

            $(
                #[tokio::test]
                async fn $case() {
                    super::$area::$case(Fixture::$backend().await).await;
                }
            )*
        }
    };
}

macro_rules! cases {
    ($($area:ident { $($case:ident)* })*) => {
        on!(memory $($($area $case)*)*);
        on!(sqlite $($($area $case)*)*);
        on!(redis $($($area $case)*)*);
        on!(redis_flushed $($($area $case)*)*);
        on!(quorum_redis $($($area $case)*)*);
        everywhere::list!(all $($($area $case)*)*);
    };
}

// The other pairs of queues and ledgers meet in the same few calls: some of each kind. All of them are `everywhere.rs`.
macro_rules! some {
    ($($backend:ident)*) => {$(
        on!(
            $backend
            enqueue a_keyed_resubmission_is_known
            lease an_unsettled_delivery_comes_back_with_one_death_more
            lease a_lease_that_was_taken_over_is_lost
            lease two_handles_drain_everything_exactly_once
            settle a_retried_job_returns_with_the_next_attempt
            settle a_release_spends_nothing
            settle a_stale_settle_changes_nothing
            settle a_late_success_ends_a_job_that_another_runs
            settle a_success_is_never_replaced_by_another_end
            end batch_counts_follow_every_path
            redrive redrive_begins_a_new_epoch_at_zero
            redrive a_job_back_in_line_is_not_redriven_twice
            cancel a_waiting_job_is_cancelled_at_once
            cancel a_running_job_learns_of_it_with_its_next_beat
            admin a_paused_queue_gives_no_leases_until_resumed
            admin purge_cancels_only_what_waits
        );
    )*};
}

some!(quorum_sqlite classic_sqlite classic_redis);

// Some of those that a folder runs below, on real S3 servers, which serve them one after the other.
macro_rules! in_buckets {
    ($name:ident $server:ident $($area:ident $case:ident)*) => {
        #[tokio::test]
        async fn $name() {
            let server = Arc::new(S3::$server().await);
            $($area::$case(Fixture::quorum_s3(&server).await).await;)*
        }
    };
}

in_buckets! {
    quorum_moto moto
    enqueue a_key_stays_known_after_the_job_ended
    enqueue a_payload_is_kept_until_its_job_succeeds
    lease a_job_that_another_copy_ended_is_told_so
    settle a_late_success_replaces_every_other_end
    settle a_success_is_never_replaced_by_a_second_one
    settle a_success_is_never_replaced_by_another_end
    end a_batch_adds_up_usage_and_cost_of_every_attempt
    redrive redrive_begins_a_new_epoch_at_zero
    redrive an_old_end_leaves_the_counts
    cancel jobs_enqueued_to_a_cancelled_batch_never_run
    ledger results_come_in_order_without_a_gap_from_any_cursor
    retention a_forgotten_id_is_still_known
}

in_buckets! {
    quorum_s3s s3s
    enqueue a_confirmed_job_is_delivered_once
    settle a_settled_job_is_not_delivered_again
    settle a_success_is_never_replaced_by_another_end
    end every_end_is_what_is_seen_of_the_job
    redrive the_dead_are_grouped_by_cause
    admin queues_are_listed_by_name_with_their_depth
}

macro_rules! of_a_store {
    ($($area:ident $case:ident)*) => {
        on!(quorum_store $($area $case)*);
        everywhere::list!(of_a_store $($area $case)*);
    };
}

// Those that ask for nothing which object storage does not promise.
of_a_store!(
    enqueue a_confirmed_job_is_delivered_once
    enqueue a_key_stays_known_after_the_job_ended
    enqueue a_batch_belongs_to_one_queue
    enqueue a_payload_is_kept_until_its_job_succeeds
    lease a_job_that_another_copy_ended_is_told_so
    lease close_releases_what_was_not_handed_out
    lease an_idle_worker_gets_a_dead_ones_job_when_its_lease_ends
    settle a_settled_job_is_not_delivered_again
    settle a_retry_is_never_early
    settle a_released_job_waits_as_long_as_told
    settle a_late_success_replaces_every_other_end
    settle a_late_failure_of_an_earlier_epoch_is_stale
    settle a_success_is_never_replaced_by_a_second_one
    settle a_success_is_never_replaced_by_another_end
    settle a_late_success_of_a_dropped_job_is_kept
    end every_end_is_what_is_seen_of_the_job
    end a_batch_adds_up_usage_and_cost_of_every_attempt
    end an_idle_worker_is_there_when_a_delayed_job_is_due
    redrive redrive_begins_a_new_epoch_at_zero
    redrive an_old_end_leaves_the_counts
    redrive a_success_is_never_redriven
    redrive a_redriven_job_that_was_delayed_may_run_at_once
    redrive a_dropped_job_is_gone_from_the_dead_but_keeps_its_record
    redrive the_dead_are_grouped_by_cause
    redrive a_job_that_died_before_its_cancel_was_seen_runs_when_redriven
    cancel an_answer_that_came_before_the_cancel_was_seen_is_kept
    cancel cancelling_an_ended_or_unknown_job_says_so
    cancel jobs_enqueued_to_a_cancelled_batch_never_run
    admin a_lease_of_a_queue_paused_meanwhile_is_told_by_its_claim
    admin pausing_one_queue_leaves_the_others
    admin queues_are_listed_by_name_with_their_depth
    moving what_stands_behind_a_forgotten_job_is_leased
    ledger results_come_in_order_without_a_gap_from_any_cursor
    ledger a_redriven_job_comes_again_and_the_later_record_counts
    retention a_forgotten_id_is_still_known
    retention outputs_nothing_names_any_more_are_given_back
);

cases! {
    enqueue {
        an_enqueued_job_waits_and_can_be_seen
        a_job_never_seen_is_nothing
        nothing_enqueued_is_no_error
        a_confirmed_job_is_delivered_once
        a_delivery_carries_what_was_submitted
        a_keyed_resubmission_is_known
        a_key_with_another_body_is_a_conflict
        a_repetition_within_one_call_is_known
        a_key_stays_known_after_the_job_ended
        a_key_stays_known_after_its_answer_was_forgotten
        known_tells_new_same_and_conflict
        a_batch_belongs_to_one_queue
        too_many_at_once_are_refused_whole
        an_oversized_payload_is_refused_alone
        a_payload_nobody_can_read_is_delivered_as_it_is
        a_payload_is_kept_until_its_job_succeeds
        a_worker_that_waits_gets_a_new_job_at_once
    }
    lease {
        an_unsettled_delivery_comes_back_with_one_death_more
        a_lease_dropped_with_its_worker_comes_back
        a_beaten_lease_does_not_come_back
        a_lease_that_was_taken_over_is_lost
        a_job_that_another_copy_ended_is_told_so
        a_job_given_back_goes_ahead_of_its_lane
        recover_gives_a_workers_jobs_back_at_once
        next_with_nothing_to_lease_answers_soon
        an_answer_is_bounded_in_bytes
        next_survives_cancellation
        close_releases_what_was_not_handed_out
        a_queue_named_twice_is_refused
        jobs_of_other_queues_are_not_leased
        a_queue_may_be_subscribed_to_before_it_exists
        two_handles_drain_everything_exactly_once
        an_idle_worker_gets_a_dead_ones_job_when_its_lease_ends
    }
    lane {
        a_held_back_lane_is_never_leased_and_an_open_one_beside_it_always_is
        never_more_than_the_total_is_leased
        never_more_than_a_lanes_cap_is_leased
        the_rest_bounds_each_lane_that_is_not_named
        a_lane_is_first_in_first_out
        bands_are_served_8_to_3_to_1
        queues_are_served_by_their_weight
        an_empty_queues_share_goes_to_the_others
        a_job_without_a_model_has_a_lane_of_its_own
    }
    settle {
        a_settled_job_is_not_delivered_again
        a_retried_job_returns_with_the_next_attempt
        a_retry_is_never_early
        a_release_spends_nothing
        a_released_job_goes_ahead_of_its_lane
        a_released_job_waits_as_long_as_told
        waking_a_hold_key_ends_every_wait_under_it_in_one_step
        a_stale_settle_changes_nothing
        a_late_success_ends_a_job_that_waits
        a_late_success_ends_a_job_that_another_runs
        a_late_success_replaces_every_other_end
        a_late_success_of_an_earlier_epoch_is_kept
        a_late_failure_of_an_earlier_epoch_is_stale
        a_success_is_never_replaced_by_a_second_one
        a_success_is_never_replaced_by_another_end
        repeating_an_end_has_no_second_effect
        repeating_a_retry_spends_one_attempt
        repeating_a_release_takes_the_job_from_nobody
        repeating_a_late_success_keeps_it_once
        a_late_success_of_a_dropped_job_is_kept
        a_late_success_of_an_earlier_epoch_adds_to_what_the_later_one_consumed
    }
    end {
        every_end_is_what_is_seen_of_the_job
        a_record_comes_back_as_it_was_stored
        a_running_job_names_its_worker
        a_delayed_job_is_never_early
        a_delayed_job_does_not_hold_up_the_others
        a_passed_deadline_shows_as_expired_at_once
        a_job_past_its_deadline_is_never_leased
        a_sweep_ends_what_passed_its_deadline
        batch_counts_follow_every_path
        a_batch_adds_up_usage_and_cost_of_every_attempt
        an_unknown_cost_is_counted_as_such
        what_was_never_called_costs_nothing
        depth_counts_by_state
        an_idle_worker_is_there_when_a_delayed_job_is_due
    }
    redrive {
        redrive_begins_a_new_epoch_at_zero
        an_old_end_leaves_the_counts
        what_an_earlier_epoch_consumed_stays_in_the_sums
        a_success_is_never_redriven
        a_job_back_in_line_is_not_redriven_twice
        cancelled_and_expired_jobs_can_be_redriven
        an_expired_job_that_is_redriven_may_run
        a_redriven_job_that_was_delayed_may_run_at_once
        a_dropped_job_is_gone_from_the_dead_but_keeps_its_record
        the_dead_are_grouped_by_cause
        a_redriven_job_that_is_cancelled_shows_that_end
        a_job_that_died_before_its_cancel_was_seen_runs_when_redriven
        a_job_redriven_from_a_cancelled_batch_runs
    }
    cancel {
        a_waiting_job_is_cancelled_at_once
        a_running_job_learns_of_it_with_its_next_beat
        an_answer_that_came_before_the_cancel_was_seen_is_kept
        cancelling_an_ended_or_unknown_job_says_so
        a_cancelled_job_given_back_does_not_run_again
        a_cancelled_job_whose_worker_died_ends_when_its_lease_does
        cancelling_a_batch_ends_what_waits_and_flags_what_runs
        jobs_enqueued_to_a_cancelled_batch_never_run
        cancelling_a_batch_twice_ends_nothing_more
    }
    admin {
        a_paused_queue_gives_no_leases_until_resumed
        jobs_that_run_when_their_queue_is_paused_go_on
        a_lease_of_a_queue_paused_meanwhile_is_told_by_its_claim
        pausing_one_queue_leaves_the_others
        purge_cancels_only_what_waits
        queues_are_listed_by_name_with_their_depth
        every_call_over_many_jobs_has_a_bound
        a_purge_of_many_ends_them_all
        a_worker_that_saw_jobs_before_a_pause_gets_none
    }
    moving {
        what_waits_is_given_whole_and_as_it_stands
        a_walk_misses_no_job_while_others_are_forgotten
        a_page_of_waiting_jobs_has_a_bound_in_bytes
        jobs_that_only_have_to_be_ended_are_left_out
        a_job_whose_end_was_taken_back_waits_with_its_new_deadline
        a_forgotten_job_was_never_there
        only_what_waits_in_that_epoch_is_forgotten
        a_lease_of_a_forgotten_job_is_stale
        a_job_put_in_elsewhere_keeps_what_it_has_behind_it
        what_stands_behind_a_forgotten_job_is_leased
        a_forgotten_job_that_comes_again_begins_anew
    }
    ledger {
        a_list_is_narrowed_by_every_filter
        a_list_names_each_job_once_while_jobs_are_added
        a_limit_is_replaced_by_who_has_seen_the_last_one_alone
        results_come_in_order_without_a_gap_from_any_cursor
        a_page_of_results_that_ends_with_the_last_record_says_so
        a_page_of_results_is_bounded_in_bytes
        a_redriven_job_comes_again_and_the_later_record_counts
        a_batch_is_open_until_it_is_sealed
        batches_are_listed_newest_first
        a_lock_has_one_holder_and_runs_out
        a_note_is_kept_until_it_is_removed
        workers_that_report_are_known
        a_worker_that_leaves_is_forgotten
    }
    retention {
        what_is_younger_than_retention_is_kept
        what_is_older_than_retention_is_forgotten_by_its_kind
        a_forgotten_id_is_still_known
        a_tombstone_goes_too_in_the_end
        over_the_bytes_the_oldest_go_first
        outputs_nothing_names_any_more_are_given_back
    }
}
