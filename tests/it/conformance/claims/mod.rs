//! Cases of a ledger that serves another broker, on every ledger that can.

mod ending;
mod entering;
mod object;
mod opening;
mod steering;

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
    };
}

cases! {
    entering {
        a_registered_job_is_new_then_again_then_known
        a_registration_with_another_body_is_a_conflict
        a_registration_into_a_batch_of_another_queue_says_whose_it_is
        opening_a_message_says_that_it_was_published
        an_id_whose_record_is_gone_is_still_known
        too_many_at_once_are_refused_whole
        a_delayed_job_is_shown_as_scheduled
        what_waits_elsewhere_is_leased_to_nobody_here
        what_waits_elsewhere_is_listed_by_its_state
        a_ledger_is_the_same_to_everybody_and_no_other
        two_who_ask_first_are_told_of_the_same_ledger
    }
    opening {
        a_job_never_seen_is_entered_and_may_run
        a_second_copy_is_told_until_when_it_is_taken
        a_copy_of_an_ended_job_is_told_so
        asking_again_with_the_same_lease_is_the_same_claim
        a_claim_that_ran_out_is_a_death
        a_death_is_counted_once
        a_beaten_claim_does_not_run_out
        a_claim_that_was_taken_over_is_lost
        a_claim_that_ran_out_and_was_not_taken_over_still_counts
        a_copy_of_an_earlier_attempt_is_stale
        a_copy_of_an_earlier_epoch_is_stale
        a_retry_that_was_published_but_not_noted_runs_when_the_claim_has_run_out
        the_old_copy_of_a_retry_that_was_not_noted_may_run_first
        a_message_of_a_later_epoch_than_known_begins_that_epoch
        a_job_past_its_deadline_ends_when_it_is_opened
        recover_ends_a_workers_claims_with_a_death_each
        a_sweep_ends_claims_that_ran_out
    }
    ending {
        a_success_is_recorded_counted_and_ends_the_claim
        repeating_an_end_has_no_second_effect
        a_retry_keeps_its_attempt_and_history
        repeating_a_retry_spends_one_attempt
        a_release_spends_nothing
        a_late_success_ends_a_job_that_waits
        a_late_success_ends_a_job_that_another_runs
        a_late_success_replaces_every_other_end
        a_late_success_of_an_earlier_epoch_is_kept
        a_stale_settle_changes_nothing
        a_success_is_never_replaced
        an_end_is_announced_once_and_a_later_one_again
        a_dead_job_keeps_its_payload
        a_payload_is_not_kept_of_a_success
        a_job_that_died_without_its_payload_is_not_among_the_dead
        batch_counts_follow_every_path
    }
    steering {
        a_waiting_job_is_cancelled_at_once_and_its_message_meets_it
        a_running_job_learns_of_a_cancel_with_its_next_beat
        a_cancelled_job_given_back_does_not_run_again
        a_cancelled_job_whose_worker_died_ends
        a_job_never_seen_is_cancelled_when_it_surfaces
        a_cancelled_batch_stops_what_waits_and_what_comes_later
        a_paused_queue_gives_no_claims
        a_purge_meets_what_was_created_before_it
        a_purge_lets_what_runs_go_on
        a_redrive_is_published_in_two_steps
        a_redrive_that_died_in_the_middle_is_found_again
        a_redriven_message_that_runs_needs_no_second_copy
        a_dead_job_of_the_ledgers_own_waits_elsewhere_once_it_is_redriven
        a_redrive_of_a_job_whose_message_still_waits_takes_its_end_back
        a_job_of_a_cancelled_batch_that_is_put_back_runs
        a_payload_handed_over_too_late_says_that_the_message_is_needed
        what_cannot_be_redriven_is_said
        a_sweep_ends_what_passed_its_deadline
        an_expired_job_that_is_redriven_may_run
        a_forgotten_job_was_never_there
        queues_stand_with_what_runs_and_what_is_dead
        a_queue_that_is_used_stands_before_it_has_jobs
        claims_run_out_by_the_ledgers_clock
    }
}

// The ledger in object storage, which cannot claim: the cases above that hold on it, and its own, in memory and in a
// folder, and all of them on each S3 server.
macro_rules! stored {
    ($($area:ident { $($case:ident)* })*) => {
        on!(object_memory $($($area $case)*)*);
        on!(object_folder $($($area $case)*)*);

        async fn in_buckets(server: S3) {
            $($(
                let store = server.store(&format!("{}/in a/folder", server.bucket().await)).await;
                $area::$case(Fixture::on_objects(store).await).await;
            )*)*
        }
    };
}

#[tokio::test]
async fn object_moto() {
    in_buckets(S3::moto().await).await;
}

#[tokio::test]
async fn object_s3s() {
    in_buckets(S3::s3s().await).await;
}

/// Not on s3s-fs, which may take both of two creations at one moment.
#[tokio::test]
async fn object_identities_asked_for_at_once() {
    let moto = S3::moto().await;
    let bucket = Fixture::on_objects(moto.store(&moto.bucket().await).await).await;
    for f in [Fixture::object_memory().await, Fixture::object_folder().await, bucket] {
        entering::two_who_ask_first_are_told_of_the_same_ledger(f).await;
    }
}

stored! {
    entering {
        a_registration_into_a_batch_of_another_queue_says_whose_it_is
        too_many_at_once_are_refused_whole
        a_ledger_is_the_same_to_everybody_and_no_other
    }
    opening {
        a_copy_of_an_ended_job_is_told_so
        a_claim_that_ran_out_and_was_not_taken_over_still_counts
        a_copy_of_an_earlier_epoch_is_stale
        a_job_past_its_deadline_ends_when_it_is_opened
    }
    ending {
        a_success_is_recorded_counted_and_ends_the_claim
        repeating_an_end_has_no_second_effect
        a_dead_job_keeps_its_payload
        a_payload_is_not_kept_of_a_success
    }
    steering {
        a_cancelled_job_given_back_does_not_run_again
        a_cancelled_job_whose_worker_died_ends
        a_job_never_seen_is_cancelled_when_it_surfaces
        a_paused_queue_gives_no_claims
        a_purge_lets_what_runs_go_on
        a_redrive_is_published_in_two_steps
        a_queue_that_is_used_stands_before_it_has_jobs
    }
    object {
        two_copies_may_both_run_and_the_first_success_is_the_result
        asking_again_with_the_same_lease_may_run
        deaths_are_counted_from_the_second_on
        deaths_are_counted_by_epoch
        a_job_is_known_when_it_has_ended
        a_job_that_waits_or_runs_is_counted_and_not_told_of
        a_late_success_replaces_every_other_end
        a_late_success_of_an_earlier_epoch_is_kept
        counts_follow_every_end_and_every_redrive
        a_cancel_is_a_flag_that_waiting_messages_and_running_jobs_meet
        a_cancelled_batch_stops_what_waits_and_what_comes_later
        a_purge_meets_what_was_created_before_it
        an_end_is_taken_back_while_its_message_waits
        a_redrive_that_died_in_the_middle_is_found_again
        what_cannot_be_redriven_is_said
        a_job_that_goes_elsewhere_leaves_its_batch
        queues_stand_with_what_is_dead
        results_are_told_in_pages_and_to_every_process_alike
        locks_notes_and_workers_are_kept_beside
        retention_forgets_records_and_remembers_ids
    }
}
