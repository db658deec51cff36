{{- /* The rules, for the PrometheusRule here and, with the values as they ship, for deploy/alerts/promptq.rules.yaml.
[[ and ]] stand for the braces that are Prometheus's own. Takes .Values.alerts. */ -}}
{{- define "promptq.rules" -}}
{{- $t := .thresholds -}}
{{- $budget := printf "%.4f" (subf 1 $t.sloObjective) | trimSuffix "0" | trimSuffix "0" -}}
{{- $started := printf "le=~\"%v(\\\\.0)?\", queue=~%q" $t.sloStartSeconds .sloQueues -}}
{{- $patient := printf "%s|%s" .interactiveQueues .patientQueues -}}
groups:
  - name: promptq-records
    rules:
      - record: queue:promptq_jobs_completed:rate5m
        expr: sum by (queue) (rate(promptq_jobs_completed_total[5m]))
      - record: queue:promptq_queue_ready:max
        expr: max by (queue) (promptq_queue_messages{state="ready"})
      - record: queue:promptq_queue_blocked_jobs:sum
        expr: sum by (queue) (max by (queue, reason) (promptq_queue_blocked_jobs))
      {{- range list "5m" "30m" "1h" "2h" "6h" "1d" "3d" }}
      - record: queue:promptq_slo_error_ratio:rate{{ . }}
        expr: |-
          1 - sum by (queue) (rate(promptq_job_queue_wait_seconds_bucket{ {{- $started -}} }[{{ . }}]))
            / sum by (queue) (rate(promptq_job_queue_wait_seconds_count{queue=~{{ $.sloQueues | quote }}}[{{ . }}]))
      {{- end }}

  - name: promptq-queues
    rules:
      {{- range list
        (dict "alert" "OldestJobTooOld" "queues" (printf "queue!~%q" $patient) "over" $t.oldestSeconds "for" "5m")
        (dict "alert" "OldestInteractiveJobTooOld" "queues" (printf "queue=~%q" .interactiveQueues) "over" $t.interactiveOldestSeconds "for" "2m") }}
      - alert: {{ .alert }}
        expr: |-
          max by (queue) (promptq_queue_oldest_message_age_seconds{state="ready", {{ .queues }}}) > {{ .over }}
            unless on (queue) queue:promptq_queue_blocked_jobs:sum > 0
        for: {{ .for }}
        keep_firing_for: 5m
        {{- include "promptq.rule" (dict "alerts" $ "name" .alert "severity" "page"
          "summary" "Jobs of queue [[ $labels.queue ]] wait too long"
          "description" "The oldest job that could run has waited for [[ $value | humanizeDuration ]], and neither a pause, a limit nor an outage of its provider holds it.") | nindent 8 }}
      {{- end }}
      - alert: QueueNotDraining
        expr: |-
          queue:promptq_queue_ready:max > 0
            unless on (queue) queue:promptq_jobs_completed:rate5m > 0
            unless on (queue) queue:promptq_queue_blocked_jobs:sum > 0
        for: 10m
        {{- include "promptq.rule" (dict "alerts" . "name" "QueueNotDraining" "severity" "page"
          "summary" "No job of queue [[ $labels.queue ]] ends"
          "description" "[[ $value ]] jobs are ready, nothing holds them, and none has ended for 10 minutes.") | nindent 8 }}
      - alert: NoConsumers
        expr: |-
          queue:promptq_queue_ready:max > 0
            and on (queue) max by (queue) (promptq_queue_consumers) == 0
            unless on (queue) max by (queue) (promptq_queue_paused) == 1
        for: 10m
        {{- include "promptq.rule" (dict "alerts" . "name" "NoConsumers" "severity" "page"
          "summary" "No worker takes jobs of queue [[ $labels.queue ]]"
          "description" "[[ $value ]] jobs are ready, and no worker has reported that it takes them for longer than one needs to start.") | nindent 8 }}
      - alert: DrainTimeTooLong
        expr: |-
          max by (queue) (promptq_queue_drain_seconds) > {{ $t.drainSeconds }}
            and on (queue) max by (queue) (deriv(promptq_queue_messages{state="ready"}[15m])) > 0
            unless on (queue) queue:promptq_queue_blocked_jobs:sum > 0
        for: 15m
        {{- include "promptq.rule" (dict "alerts" . "name" "DrainTimeTooLong" "severity" "ticket"
          "summary" "Queue [[ $labels.queue ]] grows faster than it is worked off"
          "description" "What is unfinished takes [[ $value | humanizeDuration ]] at the present rate, and it gets more. No limit holds it: more workers help.") | nindent 8 }}
      - alert: QueueBlocked
        expr: max by (queue, reason) (promptq_queue_blocked_jobs{reason=~"account|budget|capacity"}) > 0
        for: 15m
        {{- include "promptq.rule" (dict "alerts" . "name" "QueueBlocked" "severity" "ticket"
          "summary" "Queue [[ $labels.queue ]] waits: [[ $labels.reason ]]"
          "description" "[[ $value ]] jobs have waited for 15 minutes behind a refused account, a spent budget or a provider that is down. More workers do not help.") | nindent 8 }}
      - alert: QueuePausedLong
        expr: |-
          queue:promptq_queue_ready:max > 0
            and on (queue) max by (queue) (promptq_queue_paused) == 1
        for: 4h
        {{- include "promptq.rule" (dict "alerts" . "name" "QueuePausedLong" "severity" "ticket"
          "summary" "Queue [[ $labels.queue ]] has been paused for hours with work in it"
          "description" "[[ $value ]] jobs wait for somebody to resume it.") | nindent 8 }}
      - alert: DeadLetters
        expr: sum by (queue, reason) (increase(promptq_jobs_dead_total[15m])) > 0
        {{- include "promptq.rule" (dict "alerts" . "name" "DeadLetters" "severity" "ticket"
          "summary" "Jobs of queue [[ $labels.queue ]] were given up: [[ $labels.reason ]]"
          "description" "About [[ $value | humanize ]] in the last 15 minutes. Their input is kept; they can be put back.") | nindent 8 }}
      - alert: ManyDeadLetters
        expr: |-
          sum by (queue) (rate(promptq_jobs_completed_total{outcome="dead"}[15m]))
            / sum by (queue) (rate(promptq_jobs_completed_total[15m])) > {{ $t.deadShare }}
        for: 5m
        {{- include "promptq.rule" (dict "alerts" . "name" "ManyDeadLetters" "severity" "page"
          "summary" "Much of what queue [[ $labels.queue ]] holds dies"
          "description" "[[ $value | humanizePercentage ]] of the jobs that ended in the last 15 minutes were given up.") | nindent 8 }}

  - name: promptq-exporter
    rules:
      - alert: ExporterAbsent
        expr: absent(promptq_queue_scrape_success)
        for: 10m
        {{- include "promptq.rule" (dict "alerts" . "name" "ExporterAbsent" "severity" "page"
          "summary" "Nobody tells how the queues stand"
          "description" "No promptq exporter has been scraped for 10 minutes: every alert about queues is blind.") | nindent 8 }}
      - alert: ExporterStale
        expr: |-
          time() - max by (backend) (promptq_queue_last_scrape_success_timestamp_seconds) > {{ $t.exporterStaleSeconds }}
            or max by (backend) (promptq_queue_scrape_success) == 0
        for: 5m
        {{- include "promptq.rule" (dict "alerts" . "name" "ExporterStale" "severity" "page"
          "summary" "The exporter cannot read the queues on [[ $labels.backend ]]"
          "description" "It runs and has not had an answer from the broker for minutes: every alert about queues is blind.") | nindent 8 }}

  - name: promptq-slo
    rules:
      {{- range list
        (dict "alert" "SloFastBurn" "long" "1h" "short" "5m" "times" 14.4 "for" "2m" "severity" "page")
        (dict "alert" "SloSlowBurn" "long" "6h" "short" "30m" "times" 6 "for" "15m" "severity" "page")
        (dict "alert" "SloDayBurn" "long" "1d" "short" "2h" "times" 3 "for" "15m" "severity" "ticket")
        (dict "alert" "SloThreeDayBurn" "long" "3d" "short" "6h" "times" 1 "for" "15m" "severity" "ticket") }}
      - alert: {{ .alert }}
        expr: |-
          queue:promptq_slo_error_ratio:rate{{ .long }} > ({{ .times }} * {{ $budget }})
            and on (queue) queue:promptq_slo_error_ratio:rate{{ .short }} > ({{ .times }} * {{ $budget }})
            and on (queue) sum by (queue) (increase(promptq_job_queue_wait_seconds_count[{{ .long }}])) >= {{ $t.sloMinimumJobs }}
        for: {{ .for }}
        {{- include "promptq.rule" (dict "alerts" $ "name" .alert "severity" .severity
          "summary" "Jobs of queue [[ $labels.queue ]] start too late"
          "description" (printf "[[ $value | humanizePercentage ]] of the jobs of the last %s started later than %v s after they could: %v times as many as the objective allows for." .long $t.sloStartSeconds .times)) | nindent 8 }}
      {{- end }}

  - name: promptq-workers
    rules:
      - alert: RedeliveryLoop
        expr: |-
          sum by (queue) (rate(promptq_jobs_redelivered_total[10m]))
            / sum by (queue) (rate(promptq_jobs_started_total[10m])) > {{ $t.redeliveredShare }}
        for: 15m
        {{- include "promptq.rule" (dict "alerts" . "name" "RedeliveryLoop" "severity" "ticket"
          "summary" "Workers die with jobs of queue [[ $labels.queue ]]"
          "description" "[[ $value | humanizePercentage ]] of what is started was started before by a worker that died. At the third death a job is given up.") | nindent 8 }}
      - alert: JobStuck
        expr: max by (queue, instance) (promptq_worker_oldest_inflight_job_age_seconds) > {{ $t.jobSeconds }}
        for: 5m
        {{- include "promptq.rule" (dict "alerts" . "name" "JobStuck" "severity" "ticket"
          "summary" "A job of queue [[ $labels.queue ]] has been running for long on [[ $labels.instance ]]"
          "description" "For [[ $value | humanizeDuration ]] now. RabbitMQ takes a delivery back when its consumer timeout is over.") | nindent 8 }}
      - alert: ForcedShutdowns
        expr: sum(increase(promptq_worker_shutdowns_total{result!="clean"}[1h])) > {{ $t.forcedShutdowns }}
        {{- include "promptq.rule" (dict "alerts" . "name" "ForcedShutdowns" "severity" "ticket"
          "summary" "Workers are stopped before their jobs end"
          "description" "[[ $value | humanize ]] workers of the last hour left with jobs still running. Calls that were cut may be paid twice.") | nindent 8 }}
      - alert: WorkersBlocked
        expr: max by (instance, reason) (promptq_worker_blocked{reason=~"memory|disk|settling"}) > 0
        for: 10m
        {{- include "promptq.rule" (dict "alerts" . "name" "WorkersBlocked" "severity" "ticket"
          "summary" "Worker [[ $labels.instance ]] takes no jobs: [[ $labels.reason ]]"
          "description" "Its memory or its disk is short, or results wait to be written. What it runs goes on.") | nindent 8 }}

  - name: promptq-backends
    rules:
      - alert: BrokerDown
        expr: max by (backend) (promptq_broker_connected) == 0
        for: 2m
        {{- include "promptq.rule" (dict "alerts" . "name" "BrokerDown" "severity" "page"
          "summary" "No process of promptq reaches the broker ([[ $labels.backend ]])"
          "description" "Nothing is submitted and nothing is taken. What was confirmed is durable there.") | nindent 8 }}
      - alert: PublishFailing
        expr: |-
          sum by (queue) (rate(promptq_publish_total{outcome=~"timeout|unavailable|error"}[5m]))
            / sum by (queue) (rate(promptq_publish_total[5m])) > {{ $t.publishFailedShare }}
        for: 5m
        {{- include "promptq.rule" (dict "alerts" . "name" "PublishFailing" "severity" "page"
          "summary" "Submissions to queue [[ $labels.queue ]] fail"
          "description" "[[ $value | humanizePercentage ]] of the jobs submitted in the last 5 minutes were not confirmed.") | nindent 8 }}
      - alert: ProviderThrottled
        expr: |-
          sum by (provider) (rate(promptq_provider_requests_total{outcome="rate_limited"}[10m]))
            / sum by (provider) (rate(promptq_provider_requests_total[10m])) > {{ $t.throttledShare }}
        for: 15m
        {{- include "promptq.rule" (dict "alerts" . "name" "ProviderThrottled" "severity" "ticket"
          "summary" "Provider [[ $labels.provider ]] refuses calls for their rate"
          "description" "[[ $value | humanizePercentage ]] of the calls. Its limits are not what the settings say, or others use the account.") | nindent 8 }}
      - alert: SpendRate
        expr: sum(rate(promptq_cost_usd_total[1h])) * 3600 > {{ $t.spendUsdPerHour }}
        for: 15m
        {{- include "promptq.rule" (dict "alerts" . "name" "SpendRate" "severity" "ticket"
          "summary" "Calls cost [[ $value | humanize ]] dollars an hour"
          "description" "More than was expected. Caps on money stop work; this only tells.") | nindent 8 }}

  - name: promptq-scaling
    rules:
      - alert: AtMaxScale
        expr: |-
          kube_horizontalpodautoscaler_status_current_replicas{horizontalpodautoscaler=~{{ .scalers | quote }}}
            >= on (namespace, horizontalpodautoscaler) kube_horizontalpodautoscaler_spec_max_replicas
            and on () sum(queue:promptq_queue_ready:max unless on (queue) queue:promptq_queue_blocked_jobs:sum > 0) > 0
        for: 30m
        {{- include "promptq.rule" (dict "alerts" . "name" "AtMaxScale" "severity" "ticket"
          "summary" "There are as many workers as there may be, and work waits"
          "description" "[[ $labels.horizontalpodautoscaler ]] has been at [[ $value ]] replicas for 30 minutes, and no limit of a provider holds the work.") | nindent 8 }}
      - alert: KedaScalerErrors
        expr: sum by (exported_namespace, scaledObject) (rate(keda_scaler_detail_errors_total{scaledObject=~{{ .scalers | quote }}}[5m])) > 0
        for: 10m
        {{- include "promptq.rule" (dict "alerts" . "name" "KedaScalerErrors" "severity" "page"
          "summary" "KEDA cannot ask how much work there is"
          "description" "[[ $labels.scaledObject ]] in [[ $labels.exported_namespace ]] has the workers of its fallback.") | nindent 8 }}
{{- end -}}

{{- define "promptq.rule" -}}
labels:
  severity: {{ .severity }}
  service: promptq
annotations:
  summary: {{ .summary | quote }}
  description: {{ .description | quote }}
  runbook_url: {{ printf "%s#%s" .alerts.runbook (lower .name) | quote }}
{{- end -}}
