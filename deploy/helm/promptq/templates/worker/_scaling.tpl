{{- /* The names of the queues, without shares. */ -}}
{{- define "promptq.scaling.queues" -}}
{{- $names := list -}}
{{- range .Values.worker.queues -}}
{{- $names = append $names (splitList ":" . | first) -}}
{{- end -}}
{{- toJson $names -}}
{{- end -}}

{{- /* Fast up, slowly down: the pod that has to go is whichever, busy or not. */ -}}
{{- define "promptq.scaling.behavior" -}}
scaleUp:
  stabilizationWindowSeconds: 0
  selectPolicy: Max
  policies:
    - {type: Percent, value: 100, periodSeconds: 15}
    - {type: Pods, value: 4, periodSeconds: 15}
scaleDown:
  stabilizationWindowSeconds: {{ .Values.autoscaling.scaleDownSeconds }}
  policies:
    - {type: Pods, value: 1, periodSeconds: 60}
{{- end -}}

{{- /* Several triggers count by the largest; this adds them up. */ -}}
{{- define "promptq.scaling.formula" -}}
{{- if and (eq .Values.autoscaling.keda.source "metrics-api") (gt (len .Values.worker.queues) 1) -}}
{{- $names := list -}}
{{- range $at, $queue := .Values.worker.queues -}}
{{- $names = append $names (printf "queue%d" $at) -}}
{{- end -}}
{{- join " + " $names -}}
{{- end -}}
{{- end -}}

{{- /* Takes root, target (unfinished jobs for each pod) and cached (a ScaledJob has no cache). */ -}}
{{- define "promptq.scaling.triggers" -}}
{{- $root := .root -}}
{{- $target := .target -}}
{{- $cached := .cached -}}
{{- $queues := include "promptq.scaling.queues" $root | fromJsonArray -}}
{{- $keda := $root.Values.autoscaling.keda -}}
{{- if eq $keda.source "prometheus" -}}
- type: prometheus
  name: unfinished
  {{- if $cached }}
  useCachedMetrics: true
  {{- end }}
  metadata:
    serverAddress: {{ $keda.prometheus.serverAddress | quote }}
    query: {{ printf "sum(max by (queue, state) (promptq_queue_messages{queue=~%q, state=~\"ready|running\"%s}))" (join "|" $queues) (ternary (printf ", %s" $keda.prometheus.selector) "" (not (empty $keda.prometheus.selector))) | squote }}
    threshold: {{ $target | quote }}
    activationThreshold: "0"
    ignoreNullValues: "false"
{{- else -}}
{{- range $at, $queue := $queues }}
- type: metrics-api
  name: queue{{ $at }}
  {{- if $cached }}
  useCachedMetrics: true
  {{- end }}
  metadata:
    url: http://{{ include "promptq.fullname" $root }}-gateway.{{ $root.Release.Namespace }}.svc:{{ $root.Values.gateway.service.port }}/v1/queues/{{ $queue }}/stats
    format: json
    valueLocation: unfinished
    targetValue: {{ $target | quote }}
    activationTargetValue: "0"
    {{- if not $root.Values.gateway.insecure }}
    authMode: bearer
  authenticationRef:
    name: {{ include "promptq.fullname" $root }}-worker
    {{- end }}
{{- end }}
{{- end -}}
{{- end -}}
