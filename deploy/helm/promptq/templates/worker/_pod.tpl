{{- /* The longest a job runs and 30 s more; nodes that are taken away wait for 600 s at most. */ -}}
{{- define "promptq.worker.grace" -}}
{{- with .Values.worker -}}
{{- .terminationGracePeriodSeconds | default (min 600 (add (int .jobTimeoutSeconds) 30)) -}}
{{- end -}}
{{- end -}}

{{- define "promptq.worker.labels" -}}
{{- include "promptq.pod.labels" (dict "root" . "component" "worker") -}}
{{- end -}}

{{- define "promptq.worker.annotations" -}}
{{- include "promptq.pod.annotations" (dict "root" . "component" "worker") }}
{{- if .Values.worker.protectFromEviction }}
cluster-autoscaler.kubernetes.io/safe-to-evict: "false"
karpenter.sh/do-not-disrupt: "true"
{{- end }}
{{- end -}}

{{- /* Takes root, and args to put behind the usual ones. */ -}}
{{- define "promptq.worker.spec" -}}
{{- $in := dict "root" .root "component" "worker" -}}
{{- $values := .root.Values.worker -}}
{{- $grace := include "promptq.worker.grace" .root | int -}}
{{ include "promptq.pod.spec" $in }}
terminationGracePeriodSeconds: {{ $grace }}
containers:
  - name: worker
    {{- include "promptq.container" $in | nindent 4 }}
    command: [promptq-worker]
    args:
      - --queues={{ join "," $values.queues }}
      - --concurrency={{ .concurrency }}
      - --drain-timeout={{ sub $grace 15 }}s
      {{- range .args }}
      - {{ . }}
      {{- end }}
      {{- range $values.extraArgs }}
      - {{ . | quote }}
      {{- end }}
    env:
      {{- include "promptq.env" $in | nindent 6 }}
    ports:
      - {name: admin, containerPort: 9091}
    {{- include "promptq.probes" . | nindent 4 }}
    volumeMounts:
      {{- include "promptq.mounts" $in | nindent 6 }}
volumes:
  {{- include "promptq.volumes" $in | nindent 2 }}
{{- end -}}
