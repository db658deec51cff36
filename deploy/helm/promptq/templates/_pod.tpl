{{- /* What the pods of every component share. Each takes root and component. */ -}}

{{- define "promptq.pod.labels" -}}
{{ include "promptq.selector" . }}
{{- with (index .root.Values .component).podLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "promptq.pod.annotations" -}}
checksum/settings: {{ .root.Values.settings | sha256sum }}
{{- with (index .root.Values .component).podAnnotations }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "promptq.pod.spec" -}}
serviceAccountName: {{ include "promptq.serviceAccount" . }}
automountServiceAccountToken: false
enableServiceLinks: false
{{- with .root.Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
securityContext:
  runAsNonRoot: true
  runAsUser: 65532
  runAsGroup: 65532
  fsGroup: 65532
  seccompProfile:
    type: RuntimeDefault
{{- with index .root.Values .component }}
{{- with .priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "promptq.pod.spread" -}}
topologySpreadConstraints:
  {{- range list "topology.kubernetes.io/zone" "kubernetes.io/hostname" }}
  - topologyKey: {{ . }}
    maxSkew: 1
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels:
        {{- include "promptq.selector" $ | nindent 8 }}
    matchLabelKeys: [pod-template-hash]
  {{- end }}
{{- end -}}

{{- /* The part of a container that does not depend on what it runs. */ -}}
{{- define "promptq.container" -}}
image: {{ include "promptq.image" .root }}
imagePullPolicy: {{ .root.Values.image.pullPolicy }}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities:
    drop: [ALL]
resources:
  {{- toYaml (index .root.Values .component).resources | nindent 2 }}
{{- end -}}

{{- define "promptq.probes" -}}
startupProbe:
  httpGet: {path: /startupz, port: admin}
  periodSeconds: 2
  failureThreshold: 30
livenessProbe:
  httpGet: {path: /livez, port: admin}
  periodSeconds: 10
  timeoutSeconds: 2
  failureThreshold: 6
readinessProbe:
  httpGet: {path: /readyz, port: admin}
  periodSeconds: 5
  failureThreshold: 2
{{- end -}}

{{- /* Secrets of one component as {variable, secret, key}: the broker's and the ledger's login, and over them its own. */ -}}
{{- define "promptq.secrets" -}}
{{- $all := dict -}}
{{- range $section := list "broker" "ledger" -}}
{{- with (index $.root.Values $section).secret -}}
{{- if .name -}}
{{- range $word, $key := dict "USER" .userKey "PASSWORD" .passwordKey -}}
{{- $variable := printf "PROMPTQ__%s__%s" (upper $section) $word -}}
{{- $_ := set $all $variable (dict "variable" $variable "secret" (index $.root.Values $section).secret.name "key" $key) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- range (index .root.Values .component).secrets -}}
{{- $_ := set $all .variable . -}}
{{- end -}}
{{- $list := list -}}
{{- range keys $all | sortAlpha -}}
{{- $list = append $list (index $all .) -}}
{{- end -}}
{{- toJson $list -}}
{{- end -}}

{{- define "promptq.env" -}}
{{- $values := .root.Values -}}
- {name: PROMPTQ_BROKER, value: {{ $values.broker.url | quote }}}
{{- with $values.ledger.url }}
- {name: PROMPTQ_LEDGER, value: {{ . | quote }}}
{{- end }}
{{- with $values.store.url }}
- {name: PROMPTQ_STORE, value: {{ . | quote }}}
{{- end }}
- {name: PROMPTQ_ADMIN, value: "0.0.0.0:9091"}
{{- if ne .component "worker" }}
{{- /* A queue of the workers is there before its first job: who scales by it asks at once. */}}
- {name: PROMPTQ__WORKER__QUEUES, value: {{ join "," $values.worker.queues | quote }}}
{{- end }}
{{- if $values.settings }}
- {name: PROMPTQ_CONFIG, value: /etc/promptq/promptq.toml}
{{- end }}
{{- range $section := list "broker" "ledger" }}
{{- with (index $values $section).ca }}
{{- if .configMap }}
- {name: PROMPTQ__{{ upper $section }}__TLS_CA, value: /etc/promptq/{{ $section }}-ca/ca.pem}
{{- end }}
{{- end }}
{{- end }}
{{- range include "promptq.secrets" . | fromJsonArray }}
- {name: {{ .variable }}_FILE, value: /run/secrets/promptq/{{ .variable }}}
{{- end }}
- {name: HOME, value: /tmp}
{{- with (index $values .component).extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "promptq.mounts" -}}
- {name: tmp, mountPath: /tmp}
{{- if .root.Values.settings }}
- {name: settings, mountPath: /etc/promptq/promptq.toml, subPath: promptq.toml, readOnly: true}
{{- end }}
{{- range $section := list "broker" "ledger" }}
{{- if (index $.root.Values $section).ca.configMap }}
- {name: {{ $section }}-ca, mountPath: /etc/promptq/{{ $section }}-ca, readOnly: true}
{{- end }}
{{- end }}
{{- if include "promptq.secrets" . | fromJsonArray }}
- {name: secrets, mountPath: /run/secrets/promptq, readOnly: true}
{{- end }}
{{- end -}}

{{- define "promptq.volumes" -}}
- name: tmp
  emptyDir: {}
{{- if .root.Values.settings }}
- name: settings
  configMap:
    name: {{ include "promptq.fullname" .root }}-settings
{{- end }}
{{- range $section := list "broker" "ledger" }}
{{- with (index $.root.Values $section).ca }}
{{- if .configMap }}
- name: {{ $section }}-ca
  configMap:
    name: {{ .configMap }}
    items:
      - {key: {{ .key }}, path: ca.pem}
{{- end }}
{{- end }}
{{- end }}
{{- with include "promptq.secrets" . | fromJsonArray }}
- name: secrets
  projected:
    defaultMode: 0440
    sources:
      {{- range . }}
      - secret:
          name: {{ .secret }}
          items:
            - {key: {{ .key }}, path: {{ .variable }}}
      {{- end }}
{{- end }}
{{- end -}}
