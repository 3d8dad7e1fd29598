{{/* The pod that runs vLLM with the sidecar beside it; the Deployment and the LeaderWorkerSet share it. */}}

{{/* (dict "root" . "role" "single"|"leader"|"worker") */}}
{{- define "llm-internals.enginePod" -}}
{{- $engine := .root.Values.engine -}}
{{- /* Behind a worker of several nodes no server listens: its sidecar sends no canaries. */ -}}
{{- $beside := set (omit .root "isWorker") "isWorker" (eq .role "worker") -}}
metadata:
  labels:
    {{- include "llm-internals.engineSelectorLabels" .root | nindent 4 }}
    {{- include "llm-internals.podLabels" .root | nindent 4 }}
    llm-internals.io/role: {{ .role }}
    {{- with $engine.podLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  annotations:
    kubectl.kubernetes.io/default-container: engine
    {{- if .root.Values.sidecar.metricsToml }}
    checksum/metrics: {{ sha256sum .root.Values.sidecar.metricsToml }}
    {{- end }}
    {{- if not (include "llm-internals.hasOperator" (dict "root" .root "wanted" .root.Values.podMonitor.enabled)) }}
    prometheus.io/scrape: "true"
    prometheus.io/port: "9478"
    prometheus.io/path: /metrics
    {{- end }}
    {{- with $engine.podAnnotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  automountServiceAccountToken: false
  serviceAccountName: {{ default (include "llm-internals.fullname" .root) .root.Values.serviceAccount.name }}
  enableServiceLinks: false
  terminationGracePeriodSeconds: {{ int64 $engine.terminationGracePeriodSeconds }}
  securityContext:
    {{- include "llm-internals.podSecurityContext" .root | nindent 4 }}
  {{- with .root.Values.imagePullSecrets }}
  imagePullSecrets:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- $tap := include "llm-internals.tapInitContainer" .root }}
  {{- $isNative := eq .root.Values.sidecar.form "native" }}
  {{- if or $tap $isNative }}
  initContainers:
    {{- with $tap }}
    {{- . | nindent 4 }}
    {{- end }}
    {{- if $isNative }}
    {{- include "llm-internals.sidecarInitContainer" $beside | nindent 4 }}
    {{- end }}
  {{- end }}
  containers:
    {{- include "llm-internals.engineContainer" . | nindent 4 }}
    {{- if not $isNative }}
    {{- include "llm-internals.sidecarContainer" $beside | nindent 4 }}
    {{- end }}
  volumes:
    {{- include "llm-internals.volumes" .root | nindent 4 }}
    {{- include "llm-internals.engineVolumes" $engine | trim | nindent 4 }}
  {{- with $engine.nodeSelector }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $engine.tolerations }}
  tolerations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $engine.affinity }}
  affinity:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $engine.topologySpreadConstraints }}
  topologySpreadConstraints:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $engine.runtimeClassName }}
  runtimeClassName: {{ . }}
  {{- end }}
  {{- with $engine.priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
{{- end }}

{{- define "llm-internals.engineContainer" -}}
{{- $engine := .root.Values.engine -}}
- name: engine
  image: {{ include "llm-internals.imageOf" (dict "image" $engine.image "tag" "latest") }}
  imagePullPolicy: {{ $engine.image.pullPolicy }}
  command:
    {{- toYaml $engine.command | nindent 4 }}
  args:
    {{- include "llm-internals.engineArgs" . | trim | nindent 4 }}
  {{- if ne .role "worker" }}
  ports:
    - name: http
      containerPort: {{ int64 $engine.port }}
  {{- end }}
  env:
    {{- include "llm-internals.engineEnv" .root | trim | nindent 4 }}
    # A user without a name and a home: what vLLM, torch and Triton write goes to the cache volume.
    - name: USER
      value: vllm
    - name: HOME
      value: /cache
    - name: HF_HOME
      value: /cache/huggingface
    - name: VLLM_CACHE_ROOT
      value: /cache/vllm
    - name: TORCHINDUCTOR_CACHE_DIR
      value: /cache/inductor
    - name: TRITON_CACHE_DIR
      value: /cache/triton
    {{- with $engine.apiKeySecret }}
    {{- if .name }}
    - name: VLLM_API_KEY
      valueFrom:
        secretKeyRef:
          name: {{ .name }}
          key: {{ .key }}
    {{- end }}
    {{- end }}
    {{- with $engine.env }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  securityContext:
    {{- toYaml $engine.securityContext | nindent 4 }}
  resources:
    {{- include "llm-internals.engineResources" $engine | nindent 4 }}
  {{- if ne .role "worker" }}
  # Of vLLM alone: whether the tap lives, or the sidecar, has no say in whether the model serves.
  startupProbe:
    httpGet: {path: /health, port: http}
    periodSeconds: 10
    timeoutSeconds: 5
    failureThreshold: {{ divf $engine.startSeconds 10 | ceil | int64 }}
  readinessProbe:
    httpGet: {path: /health, port: http}
    periodSeconds: 5
    timeoutSeconds: 5
    failureThreshold: 3
  livenessProbe:
    httpGet: {path: /health, port: http}
    periodSeconds: 10
    timeoutSeconds: 10
    failureThreshold: 6
  {{- end }}
  volumeMounts:
    {{- include "llm-internals.engineVolumeMounts" .root | trim | nindent 4 }}
    - name: cache
      mountPath: /cache
    - name: shm
      mountPath: /dev/shm
    - name: tmp
      mountPath: /tmp
    {{- with $engine.extraVolumeMounts }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
{{- end }}

{{- define "llm-internals.engineArgs" -}}
{{- $engine := .root.Values.engine -}}
- {{ $engine.model | quote }}
{{- if $engine.servedName }}
- --served-model-name={{ $engine.servedName }}
{{- end }}
- --port={{ int64 $engine.port }}
{{- range $flag, $size := dict "tensor-parallel-size" $engine.tensorParallel "pipeline-parallel-size" $engine.pipelineParallel "data-parallel-size" $engine.dataParallel }}
{{- if gt (int $size) 1 }}
- --{{ $flag }}={{ int64 $size }}
{{- end }}
{{- end }}
{{- if ne .role "single" }}
# LeaderWorkerSet sets these variables in every pod of a group.
- --nnodes={{ int64 $engine.nodes }}
- --node-rank=$(LWS_WORKER_INDEX)
- --master-addr=$(LWS_LEADER_ADDRESS)
{{- end }}
{{- if eq .role "worker" }}
- --headless
{{- end }}
{{- with $engine.args }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* GPUs of one pod: all ranks, over the pods that share them. */}}
{{- define "llm-internals.engineResources" -}}
{{- $gpus := div (mul (int .tensorParallel) (int .pipelineParallel) (int .dataParallel)) (int .nodes) -}}
{{- $asked := deepCopy .resources -}}
{{- if .gpuResource -}}
{{- $asked = mergeOverwrite (dict "limits" (dict .gpuResource (toString $gpus))) $asked -}}
{{- end -}}
{{- toYaml $asked -}}
{{- end }}

{{- define "llm-internals.engineVolumes" -}}
- name: cache
  {{- toYaml .cacheVolume | nindent 2 }}
- name: shm
  emptyDir:
    medium: Memory
    sizeLimit: {{ .shmSize }}
- name: tmp
  emptyDir: {}
{{- with .extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end }}
