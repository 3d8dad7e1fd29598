{{/*
The sidecar as a library: what another chart includes into its own pods. Each takes the context of
this chart; from a chart that depends on it that is (index .Subcharts "llm-internals-sidecar").

  llm-internals.sidecarContainer      the container, for .spec.containers (sidecar.form: classic)
  llm-internals.sidecarInitContainer  the same as a native sidecar, for .spec.initContainers
  llm-internals.tapInitContainer      lays the tap into a volume, for .spec.initContainers; nothing
                                      where the engine's image has it already (tap.delivery: image)
  llm-internals.volumes               for .spec.volumes
  llm-internals.engineEnv             for .env of the container that runs vLLM
  llm-internals.engineVolumeMounts    for its .volumeMounts
  llm-internals.podLabels             for the pod: what the PodMonitor and the NetworkPolicy select
  llm-internals.podSecurityContext    for the pod: one user and group for both containers

No probe is offered on purpose. A pod is ready when all its containers are, so whatever Kubernetes
restarts or finds unready here would take the model out of service. The process that the container
runs restarts the sidecar by itself, and looks at its health.
*/}}

{{- define "llm-internals.restricted" -}}
allowPrivilegeEscalation: false
capabilities:
  drop: [ALL]
readOnlyRootFilesystem: true
runAsNonRoot: true
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{- define "llm-internals.podSecurityContext" -}}
{{- toYaml .Values.podSecurityContext }}
{{- end }}

{{- define "llm-internals.podLabels" -}}
llm-internals.io/sidecar: "true"
{{- end }}

{{- define "llm-internals.engineEnv" -}}
- name: SIDECAR_TAP
  value: "1"
- name: SIDECAR_SOCKET
  value: /run/llm-internals/ingest.sock
{{- if .Values.frames.keySecret.name }}
- name: SIDECAR_KEY_FILE
  value: /etc/llm-internals/frames/{{ .Values.frames.keySecret.key }}
{{- end }}
{{- if .Values.canary.keySecret.name }}
- name: SIDECAR_CANARY_KEY_FILE
  value: /etc/llm-internals/canary/{{ .Values.canary.keySecret.key }}
{{- end }}
{{- if eq .Values.tap.delivery "volume" }}
- name: PYTHONPATH
  value: {{ prepend .Values.tap.pythonPath "/opt/llm-internals" | join ":" }}
{{- end }}
{{- include "llm-internals.settings" .Values.tap.settings }}
{{- end }}

{{- define "llm-internals.engineVolumeMounts" -}}
- name: llm-internals-socket
  mountPath: /run/llm-internals
{{- if eq .Values.tap.delivery "volume" }}
- name: llm-internals-tap
  mountPath: /opt/llm-internals
  readOnly: true
{{- end }}
{{- include "llm-internals.keyMounts" . }}
{{- end }}

{{- define "llm-internals.keyMounts" -}}
{{- if .Values.frames.keySecret.name }}
- name: llm-internals-frames-key
  mountPath: /etc/llm-internals/frames
  readOnly: true
{{- end }}
{{- if .Values.canary.keySecret.name }}
- name: llm-internals-canary-key
  mountPath: /etc/llm-internals/canary
  readOnly: true
{{- end }}
{{- end }}

{{- define "llm-internals.tapInitContainer" -}}
{{- if eq .Values.tap.delivery "volume" -}}
- name: llm-internals-tap
  image: {{ include "llm-internals.image" . }}
  imagePullPolicy: {{ .Values.image.pullPolicy }}
  args: [keep, --once, lay-tap, /opt/llm-internals] # whatever becomes of it, the model is served
  securityContext:
    {{- include "llm-internals.restricted" . | nindent 4 }}
  resources:
    {{- toYaml .Values.tap.resources | nindent 4 }}
  volumeMounts:
    - name: llm-internals-tap
      mountPath: /opt/llm-internals
{{- end }}
{{- end }}

{{- define "llm-internals.sidecarContainer" -}}
- name: llm-internals
  {{- include "llm-internals.sidecarBody" . | nindent 2 }}
{{- end }}

{{- define "llm-internals.sidecarInitContainer" -}}
- name: llm-internals
  restartPolicy: Always
  {{- include "llm-internals.sidecarBody" . | nindent 2 }}
{{- end }}

{{- define "llm-internals.sidecarBody" -}}
image: {{ include "llm-internals.image" . }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
args: [keep, --health, http://127.0.0.1:9478/healthz, serve]
ports:
  - name: internals
    containerPort: 9478
  - name: internals-api
    containerPort: 9479
env:
  {{- include "llm-internals.sidecarEnv" . | trim | nindent 2 }}
securityContext:
  {{- include "llm-internals.restricted" . | nindent 2 }}
resources:
  {{- toYaml .Values.sidecar.resources | nindent 2 }}
volumeMounts:
  {{- include "llm-internals.sidecarMounts" . | trim | nindent 2 }}
{{- end }}

{{- define "llm-internals.sidecarEnv" -}}
- name: SIDECAR_SOCKET
  value: /run/llm-internals/ingest.sock
- name: SIDECAR_STATE_DIR
  value: /var/lib/llm-internals
- name: SIDECAR_API_HOST
  value: {{ ternary "0.0.0.0" "127.0.0.1" .Values.fleet.enabled | quote }}
{{- if and .Values.fleet.enabled (not (hasKey .Values.sidecar.settings "api_hosts")) }}
- name: SIDECAR_API_HOSTS # the fleet job asks at the pod's address
  value: "*"
{{- end }}
{{- if .Values.api.tokenSecret.name }}
- name: SIDECAR_API_TOKEN_FILE
  value: /etc/llm-internals/token/{{ .Values.api.tokenSecret.key }}
{{- end }}
{{- if .Values.frames.keySecret.name }}
- name: SIDECAR_KEY_FILE
  value: /etc/llm-internals/frames/{{ .Values.frames.keySecret.key }}
{{- end }}
{{- with .Values.canary }}
{{- if and .keySecret.name (not $.isWorker) }}
- name: SIDECAR_CANARY_KEY_FILE
  value: /etc/llm-internals/canary/{{ .keySecret.key }}
- name: SIDECAR_CANARY_URL
  value: {{ .url | default (printf "http://127.0.0.1:%d" (int64 $.Values.engine.port)) | quote }}
{{- if .apiKeySecret.name }}
- name: SIDECAR_CANARY_API_KEY_FILE
  value: /etc/llm-internals/api/{{ .apiKeySecret.key }}
{{- end }}
{{- end }}
{{- end }}
{{- if and .Values.canary.keySecret.name .Values.engine.enabled (not .isWorker) (gt (int .Values.engine.dataParallel) 1) (not (hasKey .Values.sidecar.settings "canary_ranks")) }}
- name: SIDECAR_CANARY_RANKS
  value: {{ .Values.engine.dataParallel | int64 | quote }}
{{- end }}
{{- include "llm-internals.baselineEnv" . }}
{{- if .Values.sidecar.metricsToml }}
- name: SIDECAR_METRICS_FILE
  value: /etc/llm-internals/metrics/metrics.toml
{{- end }}
{{- include "llm-internals.settings" .Values.sidecar.settings }}
{{- with .Values.sidecar.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "llm-internals.baselineEnv" -}}
{{- with .Values.baseline }}
{{- if eq .from "volume" }}
- name: SIDECAR_BASELINE_FILE
  value: /etc/llm-internals/baseline/{{ .file }}
{{- else if eq .from "url" }}
- name: SIDECAR_BASELINE_FILE
  value: /var/lib/llm-internals/fetched.baseline
- name: SIDECAR_BASELINE_SOURCE_FILE
  value: /etc/llm-internals/baseline/source.json
{{- end }}
{{- if .publicKeySecret.name }}
- name: SIDECAR_BASELINE_KEY_FILE
  value: /etc/llm-internals/baseline-key/{{ .publicKeySecret.key }}
{{- end }}
{{- end }}
{{- end }}

{{- define "llm-internals.sidecarMounts" -}}
- name: llm-internals-socket
  mountPath: /run/llm-internals
- name: llm-internals-state
  mountPath: /var/lib/llm-internals
- name: llm-internals-tmp
  mountPath: /tmp
{{- include "llm-internals.keyMounts" . }}
{{- if .Values.api.tokenSecret.name }}
- name: llm-internals-token
  mountPath: /etc/llm-internals/token
  readOnly: true
{{- end }}
{{- if and .Values.canary.keySecret.name .Values.canary.apiKeySecret.name }}
- name: llm-internals-api-key
  mountPath: /etc/llm-internals/api
  readOnly: true
{{- end }}
{{- if ne .Values.baseline.from "none" }}
- name: llm-internals-baseline
  mountPath: /etc/llm-internals/baseline
  readOnly: true
{{- end }}
{{- if .Values.baseline.publicKeySecret.name }}
- name: llm-internals-baseline-key
  mountPath: /etc/llm-internals/baseline-key
  readOnly: true
{{- end }}
{{- if .Values.sidecar.metricsToml }}
- name: llm-internals-metrics
  mountPath: /etc/llm-internals/metrics
  readOnly: true
{{- end }}
{{- with .Values.sidecar.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "llm-internals.volumes" -}}
- name: llm-internals-socket
  emptyDir:
    medium: Memory
    sizeLimit: 16Mi
- name: llm-internals-state
  {{- toYaml .Values.sidecar.stateVolume | nindent 2 }}
- name: llm-internals-tmp
  emptyDir:
    sizeLimit: 256Mi
{{- if eq .Values.tap.delivery "volume" }}
- name: llm-internals-tap
  emptyDir:
    sizeLimit: 256Mi
{{- end }}
{{- include "llm-internals.secretVolume" (dict "name" "llm-internals-frames-key" "secret" .Values.frames.keySecret) }}
{{- include "llm-internals.secretVolume" (dict "name" "llm-internals-canary-key" "secret" .Values.canary.keySecret) }}
{{- if .Values.canary.keySecret.name }}
{{- include "llm-internals.secretVolume" (dict "name" "llm-internals-api-key" "secret" .Values.canary.apiKeySecret) }}
{{- end }}
{{- include "llm-internals.secretVolume" (dict "name" "llm-internals-token" "secret" .Values.api.tokenSecret) }}
{{- include "llm-internals.secretVolume" (dict "name" "llm-internals-baseline-key" "secret" .Values.baseline.publicKeySecret) }}
{{- if eq .Values.baseline.from "volume" }}
- name: llm-internals-baseline
  {{- toYaml .Values.baseline.volume | nindent 2 }}
{{- else if eq .Values.baseline.from "url" }}
- name: llm-internals-baseline
  {{- if .Values.baseline.sourceSecret.name }}
  secret:
    secretName: {{ .Values.baseline.sourceSecret.name }}
    optional: true
    items:
      - key: {{ .Values.baseline.sourceSecret.key }}
        path: source.json
  {{- else }}
  configMap:
    name: {{ include "llm-internals.fullname" . }}-baseline
    optional: true
  {{- end }}
{{- end }}
{{- if .Values.sidecar.metricsToml }}
- name: llm-internals-metrics
  configMap:
    name: {{ include "llm-internals.fullname" . }}-metrics
{{- end }}
{{- with .Values.sidecar.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* Readable by the group that the pod's containers share, and by nobody else. */}}
{{- define "llm-internals.secretVolume" -}}
{{- if .secret.name }}
- name: {{ .name }}
  secret:
    secretName: {{ .secret.name }}
    defaultMode: 0440
    optional: true # a key that is not there yet costs telemetry, and never keeps the model from starting
    items:
      - key: {{ .secret.key }}
        path: {{ .secret.key }}
{{- end }}
{{- end }}
