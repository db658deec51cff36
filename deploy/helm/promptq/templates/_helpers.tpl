{{- define "promptq.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{- /* Short enough for the longest suffix, -exporter and KEDA's own keda-hpa- before it. */ -}}
{{- define "promptq.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains (include "promptq.name" .) .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "promptq.name" .) | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "promptq.selector" -}}
app.kubernetes.io/name: {{ include "promptq.name" .root }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
{{- with .component }}
app.kubernetes.io/component: {{ . }}
{{- end }}
{{- end -}}

{{- define "promptq.labels" -}}
{{ include "promptq.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- end -}}

{{- /* Name, namespace and labels of an object. Takes root, component and perhaps name and labels. */ -}}
{{- define "promptq.metadata" -}}
name: {{ .name | default (printf "%s%s" (include "promptq.fullname" .root) (ternary (printf "-%s" .component) "" (not (empty .component)))) }}
namespace: {{ .root.Release.Namespace }}
labels:
  {{- include "promptq.labels" . | nindent 2 }}
  {{- with .labels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end -}}

{{- define "promptq.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}
{{ .repository }}@{{ .digest }}
{{- else -}}
{{ .repository }}:{{ .tag | default $.Chart.AppVersion }}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "promptq.serviceAccount" -}}
{{- $account := (index .root.Values .component).serviceAccount -}}
{{- if $account.create -}}
{{ $account.name | default (printf "%s-%s" (include "promptq.fullname" .root) .component) }}
{{- else -}}
{{ $account.name | default "default" }}
{{- end -}}
{{- end -}}

{{- /* What the schema cannot say, because it looks at one value at a time. Included by what every release has. */ -}}
{{- define "promptq.check" -}}
{{- if and (hasPrefix "amqp" .Values.broker.url) (not (or .Values.ledger.url .Values.store.url)) -}}
{{- fail "broker.url is RabbitMQ, which keeps no records: set ledger.url (redis://…), or store.url" -}}
{{- end -}}
{{- if and .Values.gateway.enabled (not .Values.gateway.insecure) (not .Values.gateway.keys.existingSecret) -}}
{{- fail "gateway.keys.existingSecret is not set: make keys with `promptq keys create`, put the file into a secret and name it; or set gateway.enabled=false, or gateway.insecure=true" -}}
{{- end -}}
{{- with .Values.autoscaling -}}
{{- if gt (int .minReplicas) (int .maxReplicas) -}}
{{- fail (printf "autoscaling.minReplicas (%d) is above maxReplicas (%d)" (int .minReplicas) (int .maxReplicas)) -}}
{{- end -}}
{{- if and (eq .mode "hpa") (lt (int .minReplicas) 1) -}}
{{- fail "autoscaling.mode hpa cannot scale to zero: set autoscaling.minReplicas to 1, or take keda" -}}
{{- end -}}
{{- if has .mode (list "keda" "keda-job") -}}
{{- if and (eq .keda.source "prometheus") (not .keda.prometheus.serverAddress) -}}
{{- fail "autoscaling.keda.source is prometheus: set autoscaling.keda.prometheus.serverAddress" -}}
{{- end -}}
{{- if eq .keda.source "metrics-api" -}}
{{- if not $.Values.gateway.enabled -}}
{{- fail "autoscaling.keda.source metrics-api asks the gateway: set gateway.enabled=true, or source=prometheus" -}}
{{- end -}}
{{- if and (not $.Values.gateway.insecure) (not .keda.apiKey.existingSecret) -}}
{{- fail "autoscaling.keda.apiKey.existingSecret is not set: KEDA needs a gateway key to read queue statistics" -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if and .Values.networkPolicy.enabled (not .Values.networkPolicy.backends) -}}
{{- fail "networkPolicy.backends is empty: nothing could reach the broker" -}}
{{- end -}}
{{- end -}}
